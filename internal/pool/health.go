package pool

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// Values of Stats.Health.
const (
	HealthOnline   = "ONLINE"
	HealthDegraded = "DEGRADED" // redundancy is missing somewhere; nothing else is
	HealthFaulted  = "FAULTED"  // no more changes are taken
)

// health returns the state of the pool and why it is not ONLINE.
func (p *Pool) health() (health, why string) {
	if err := p.failure(); err != nil {
		return HealthFaulted, err.Error()
	}
	health = HealthOnline
	for _, g := range p.seg.where.Load().groups {
		switch g.State() {
		case raid.Faulted:
			return HealthFaulted, fmt.Sprintf("%s has lost more than its redundancy: %v", g.name(), p.cause(g.index))
		case raid.Degraded:
			health = HealthDegraded
			if why == "" {
				why = g.name() + " has lost redundancy: " + p.lacks(g.index)
			}
		}
	}
	return health, why
}

// lacks says what is wrong with the devices of a degraded group.
func (p *Pool) lacks(group int) string {
	if err := p.cause(group); err != nil {
		return err.Error()
	}
	for _, m := range p.members() {
		if n := m.dev.StaleCount(); m.group == group && n > 0 {
			return fmt.Sprintf("device %s missed writes in %d of its pieces", m.dev.Name(), n)
		}
	}
	return "a device is being replaced"
}

// closeDevices closes all devices at once. It does not wait for those that hang, and errors of those that are out of
// use do not matter.
func (p *Pool) closeDevices() error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	out, stuck := map[disk.Device]bool{}, maps.Clone(p.stuck)
	for _, m := range p.members() {
		if d := m.dev.Disk(); d != nil && !m.online() {
			out[d] = true
			stuck[d] = m.busy()
		}
	}
	if p.opt.Manual {
		var errs []error
		for _, d := range p.devs {
			if err := d.Close(); !out[d] {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	type result struct {
		d   disk.Device
		err error
	}
	results := make(chan result, len(p.devs))
	waiting := map[disk.Device]bool{}
	for _, d := range p.devs {
		if stuck[d] {
			go d.Close()
			continue
		}
		waiting[d] = true
		go func() {
			err := d.Close()
			if out[d] {
				err = nil
			}
			results <- result{d, err}
		}()
	}
	limit := time.NewTimer(hardDeadlines * p.opt.Deadline)
	defer limit.Stop()
	var errs []error
	for len(waiting) > 0 {
		select {
		case r := <-results:
			delete(waiting, r.d)
			errs = append(errs, r.err)
		case <-limit.C:
			for d := range waiting {
				errs = append(errs, fmt.Errorf("device %s does not answer to being closed", d.Name()))
			}
			return errors.Join(errs...)
		}
	}
	return errors.Join(errs...)
}
