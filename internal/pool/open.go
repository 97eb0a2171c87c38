package pool

import (
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// Open opens the pool that the devices, in any order and under any names, make together. Devices may be missing, or
// not answer, within the redundancy of their raid groups; a device that missed writes is brought into use again, but
// for what it missed. The pool owns the devices from then on and Close closes them; after an error they remain the
// caller's. Errors name the device that is missing, foreign, damaged or too many and what was found.
func Open(devs []disk.Device, opt Options) (*Pool, error) {
	begin := time.Now()
	p, err := open(devs, opt)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	p.count.openNanos = int64(time.Since(begin))
	if p.opt.Log != nil {
		p.opt.Log.Info("pool is open", "pool", p.cfg.Name, "health", p.Stats().Health, "replicas", len(p.idx.byName), "replayed", p.count.replayed, "took", time.Since(begin))
	}
	p.start()
	if p.relabelDue.Load() {
		p.wake()
	}
	return p, nil
}

func open(devs []disk.Device, opt Options) (*Pool, error) { return openFor(devs, opt, nil) }

// openFor opens a pool, for looking only if look is not nil.
func openFor(devs []disk.Device, opt Options, look *offline) (*Pool, error) {
	opt.setDefaults()
	a, err := assemble(devs, opt)
	if err != nil {
		return nil, err
	}
	l := a.label
	p := preparePool(l, devs, opt)
	p.offline = look
	members, raidDevs := a.devices()
	if err := p.build(l, members, raidDevs); err != nil {
		return nil, fmt.Errorf("pool %s: %w", l.Name, err)
	}
	for i, x := range l.Members {
		p.labels.unseen = p.labels.unseen || !x.Left && a.members[i] == nil
		if f := a.members[i]; x.Left && f != nil {
			p.upkeep.leave = append(p.upkeep.leave, leaver{guid: x.GUID, disk: f.dev, size: f.label.Size})
		} else if x.Left {
			p.upkeep.leave = append(p.upkeep.leave, leaver{guid: x.GUID})
		}
	}
	for _, f := range a.unused {
		p.stuck[f.dev] = errors.Is(f.err, errNoAnswer)
		if p.opt.Log != nil {
			p.opt.Log.Warn("device is not used", "pool", l.Name, "device", f.dev.Name(), "err", f.err)
		}
	}
	for i, torn := range a.torn {
		if torn && p.opt.Log != nil {
			p.opt.Log.Warn("the devices of a raid group have each missed something else; all copies are tried, scrub the pool", "pool", l.Name, "group", p.seg.where.Load().groups[i].name())
		}
	}
	ring, highest, err := p.readRing(a)
	if ring == nil {
		return nil, fmt.Errorf("pool %s: %w", l.Name, err)
	}
	if look != nil {
		look.ring = ring
	} else {
		p.mendLabels(a)
	}
	if err := p.load(ring); err != nil {
		return nil, fmt.Errorf("pool %s: checkpoint %d: %w", l.Name, ring.Generation, err)
	}
	p.generation = highest
	if err := p.replay(); err != nil {
		return nil, fmt.Errorf("pool %s: replay: %w", l.Name, err)
	}
	for _, f := range a.unused { // so that somebody may do something about it
		if !p.stuck[f.dev] {
			p.letGo(f.dev)
		}
	}
	return p, nil
}

// load reads the checkpoint that ring points at.
func (p *Pool) load(ring *label.Ring) error {
	var b []byte
	for _, e := range ring.Root {
		if e.Len > indexGroup {
			return fmt.Errorf("root piece of %d bytes: %w", e.Len, ErrDamaged)
		}
		piece := make([]byte, e.Len)
		if err := p.readSummed(piece, e.Addr, e.Sum); err != nil {
			return fmt.Errorf("root: %w", err)
		}
		p.suspect(uint32(e.Addr >> p.seg.shift))
		b = append(b, piece...)
	}
	m, err := decodeRoot(b, p.seg.count(), p.seg.shift)
	if err != nil {
		return err
	}
	if m.pool != p.cfg.GUID {
		return fmt.Errorf("root of pool %v: %w", m.pool, ErrDamaged)
	}
	if err := p.loadMembers(m.members); err != nil {
		return err
	}
	p.root, p.upkeep.scrub = ring.Root, m.scrub
	if p.offline != nil {
		p.offline.root = m
	}
	copy(p.seg.pageLive, m.live)
	copy(p.seg.kind, m.kind)
	copy(p.seg.birth, m.birth)
	p.seg.clock.Store(m.clock)
	p.drain.clock = m.clock
	for _, e := range ring.Root {
		p.accountRoot(e, 1)
		p.seg.kind[e.Addr>>p.seg.shift] = segIndex
	}
	for i := range m.replicas {
		if err := p.loadReplica(&m.replicas[i]); err != nil {
			return fmt.Errorf("replica %s: %w", m.replicas[i].name, err)
		}
	}
	for i := range m.replicas {
		if x := &m.replicas[i]; x.clone {
			r := p.idx.bySlot[x.slot]
			if err := p.attach(r, x.origin, x.from); err != nil {
				return fmt.Errorf("replica %s: %w", x.name, err)
			}
			r.weigh()
		}
	}
	p.log.pos, p.drain.from, p.commits.from = m.from, m.from, m.from
	p.appended.Store(m.from.seq - 1)
	p.flush.stable.Store(m.appended)
	return nil
}

// loadReplica makes a replica of the checkpoint known.
func (p *Pool) loadReplica(m *replicaImage) error {
	r := p.newReplica(m.name, m.guid, m.size)
	r.slot, r.applied, r.state, r.snaps, r.kept, r.purge = m.slot, m.applied, m.state, m.snaps, m.snaps, m.purge
	if m.size <= 0 || p.idx.byName[r.name] != nil && !m.dying {
		return fmt.Errorf("size %d or name: %w", m.size, ErrDamaged)
	}
	other := p.idx.byName[r.name]
	p.register(r)
	if m.dying {
		p.unregister(r)
		if other != nil {
			p.idx.byName[r.name] = other
		}
	}
	r.data, r.pages, r.dirs, r.meta, r.held, r.history = m.data, m.pages, m.blocks, m.meta, m.held, m.history
	for i := range m.dirs {
		d := &m.dirs[i]
		for uint64(len(r.dir)) < d.number {
			r.dir = append(r.dir, dirRoot{})
		}
		r.dir = append(r.dir, dirRoot{dirSlot: d.dirSlot})
		r.stored += int64(d.stored)
		p.idx.nodes += int64(granules(d.size))
	}
	r.weigh()
	return nil
}

// settleSegments decides, once the log is known, which segments are free: those that neither pages nor log need.
func (p *Pool) settleSegments() {
	for _, s := range p.log.chain {
		p.seg.kind[s], p.seg.pinned[s] = segLog, true
		if p.seg.pageLive[s] == 0 { // else the checkpoint knows
			p.seg.birth[s] = p.seg.clock.Load()
		}
	}
	for i := range p.seg.kind {
		if p.seg.pageLive[i] == 0 && !p.seg.pinned[i] {
			p.seg.setFree(uint32(i))
			if !p.opt.NoDiscard { // whether the devices still have the space nobody has written down
				p.seg.undiscarded[i/64] |= 1 << (i % 64)
			}
		}
	}
}

// resume continues the log behind its last complete unit, under a new incarnation: whatever lies behind is not taken
// for a continuation by anyone any more. Where a device came back without what the segment holds, the log goes on in a
// fresh one, which that device has from the start.
func (p *Pool) resume() error {
	p.log.mu.Lock() // which is taken away when a device hangs
	defer p.log.mu.Unlock()
	p.log.beginUnit()
	inc := p.opt.Rand()
	if row := p.seg.row(p.log.pos.seg); p.log.pos.block+row < p.seg.blocks() && !p.lacked(p.log.pos.seg) {
		return p.link(p.log.pos.seg, p.log.pos.block+row, inc)
	}
	segs, ok := p.seg.alloc(nil, 1, segLog, 0)
	if !ok {
		return p.fail(ErrNoSpace)
	}
	return p.link(segs[0], 0, inc)
}
