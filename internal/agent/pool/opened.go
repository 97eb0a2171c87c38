package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// opened is an engine's pool as the agent wants to see it.
type opened struct {
	*engine.Pool
	disks *Disks

	mu    sync.Mutex
	paths []string // of all devices that the pool was given
}

// Names implements Engine.
func (o *opened) Names() []string {
	var names []string
	for _, r := range o.Replicas() {
		names = append(names, r.Name())
	}
	return names
}

// Devices implements Engine.
func (o *opened) Devices() []DeviceInfo {
	var all []DeviceInfo
	for _, d := range o.Pool.Devices() {
		x := DeviceInfo{
			GUID: d.GUID, Name: d.Name, Group: d.Group, Column: d.Column, Kind: d.Kind.String(), Cache: d.Cache, State: d.State.String(), Cause: d.Cause,
			Size: d.Size, ReadErrors: d.ReadErrors, WriteErrors: d.WriteErrors, ChecksumErrors: d.ChecksumErrors, ToResilver: d.ToResilver,
		}
		all = append(all, x)
	}
	return all
}

// Activity implements Engine.
func (o *opened) Activity() Activity {
	a := o.Pool.Activity()
	return Activity{Scrub: progress(a.Scrub), Resilver: progress(a.Resilver)}
}

func progress(p engine.Progress) Progress {
	return Progress{State: p.State, Done: p.Done, Total: p.Total, Repaired: p.Repaired, Errors: p.Errors, Rate: p.Rate, Left: p.Left, Ended: p.Ended}
}

// Scrub implements Engine.
func (o *opened) Scrub(rate int64) error { return o.Pool.Scrub(engine.ScrubOptions{Rate: rate}) }

// Replace implements Engine.
func (o *opened) Replace(old block.GUID, path string) error {
	return o.bring([]Group{{Kind: "stripe", Devices: []string{path}}}, func(g []engine.Group) error { return o.Pool.Replace(old, g[0].Devices[0]) })
}

// Return implements Engine.
func (o *opened) Return(path string) error {
	return o.bring([]Group{{Kind: "stripe", Devices: []string{path}}}, func(g []engine.Group) error { return o.Pool.Return(g[0].Devices[0]) })
}

// AddGroups implements Engine.
func (o *opened) AddGroups(groups []Group) error { return o.bring(groups, o.Pool.AddGroups) }

// bring opens devices for the pool and hands them over.
func (o *opened) bring(groups []Group, take func([]engine.Group) error) error {
	made, paths, err := o.disks.openGroups(groups)
	if err != nil {
		return err
	}
	if err := take(made); err != nil {
		closeAll(devicesOf(made))
		return err
	}
	o.mu.Lock()
	o.paths = append(o.paths, paths...)
	o.mu.Unlock()
	return nil
}

// Close implements Engine.
func (o *opened) Close() error {
	o.disks.Stop()
	return o.Pool.Close()
}

// Destroy implements Engine. Without labels a device is blank to everybody; the log between them is garbage. A device that
// carries something else by now is left alone, and one that is not there cannot be helped.
func (o *opened) Destroy() error {
	var guids []block.GUID
	for _, d := range o.Pool.Devices() {
		guids = append(guids, d.GUID)
	}
	if err := o.Close(); err != nil && !errors.Is(err, engine.ErrClosed) {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, path := range o.paths {
		if l, err := o.disks.Probe(path); err != nil || !slices.Contains(guids, l.Device) {
			continue
		}
		if err := o.disks.blank(path); err != nil {
			return fmt.Errorf("give device back: %w", err)
		}
	}
	return nil
}

// blank clears the labels of a device that was this pool's, and gives its space back.
func (d *Disks) blank(path string) error {
	dev, err := d.device(path, disk.Options{})
	if err != nil {
		return err
	}
	defer dev.Close()
	size := dev.Size()
	for off, n := range map[int64]int64{0: label.HeadBytes, size - label.TailBytes: label.TailBytes} {
		if err := dev.WritevAt([][]byte{make([]byte, n)}, off); err != nil {
			return err
		}
	}
	if err := dev.Discard(label.HeadBytes, size-label.HeadBytes-label.TailBytes); err != nil {
		return err
	}
	return dev.Flush()
}
