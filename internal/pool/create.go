package pool

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// minSegments is the smallest number of segments that a pool works with.
const minSegments = 32

func (o *Options) setDefaults() {
	if o.DeltaEntries == 0 {
		o.DeltaEntries = 1 << 18
	}
	if o.cloneDepth == 0 {
		o.cloneDepth = MaxCloneDepth
	}
	o.DeltaEntries = min(max(o.DeltaEntries, 4096), 1<<26)
	if o.PageCacheBytes == 0 {
		o.PageCacheBytes = 64 << 20
	}
	if o.ReadOnlyPercent <= 0 || o.ReadOnlyPercent > 100 {
		o.ReadOnlyPercent = 100
	}
	if o.CheckpointBytes <= 0 {
		o.CheckpointBytes = 1 << 30
	}
	if o.inlineBytes == 0 {
		o.inlineBytes, o.historyBytes = index.MaxInline, index.MaxHistory
	}
	if o.rootBytes == 0 {
		o.rootBytes = maxRoot
	}
	if o.FlushBytes <= 0 {
		o.FlushBytes = 128 << 20
	}
	if o.Deadline <= 0 {
		o.Deadline = raid.DefaultDeadline
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
}

// Create makes a pool of raid groups on blank devices, empty and stable when it returns. The pool owns the devices from
// then on and Close closes them; after an error they remain the caller's. It refuses, with *ErrForeign, a device that
// carries anything, except what an interrupted Create of a pool with the same GUID left behind. It does not wait for a
// device that hangs, which may still write a label when it answers.
func Create(groups []Group, cfg Config, opt Options) (*Pool, error) {
	p, err := create(groups, cfg, opt)
	if err != nil {
		return nil, fmt.Errorf("pool %s: create: %w", cfg.Name, err)
	}
	return p, nil
}

// namesFit returns an error for a name or an owner that a label has no room for.
func namesFit(name, owner string) error {
	if len(name) > MaxName || len(owner) > MaxName {
		return fmt.Errorf("name of %d bytes, owner of %d bytes, at most %d each: %w", len(name), len(owner), MaxName, ErrTooLarge)
	}
	return nil
}

func create(groups []Group, cfg Config, opt Options) (*Pool, error) {
	if err := namesFit(cfg.Name, cfg.Owner); err != nil {
		return nil, err
	}
	opt.setDefaults()
	for _, g := range groups {
		for _, d := range g.Devices {
			if err := opt.patiently(d, func() error { return usableForCreate(d, cfg.GUID) }); err != nil {
				return nil, err
			}
		}
	}
	if cfg.GUID.IsZero() {
		cfg.GUID = opt.newGUID()
	}
	l, devs, err := plan(groups, cfg, opt)
	if err != nil {
		return nil, err
	}
	var members []*member
	var raidDevs []*raid.Device
	for i, d := range devs {
		mine := own(l, l.Members[i].GUID, d.Size())
		if err := opt.patiently(d, func() error { return label.Write(d, mine) }); err != nil {
			return nil, err
		}
		m := newMember(l, i, d.Size(), l.Change, d)
		members, raidDevs = append(members, m), append(raidDevs, m.dev)
	}
	p := preparePool(l, devs, opt)
	if err := p.build(l, members, raidDevs); err != nil {
		return nil, err
	}
	for i := range uint32(p.seg.count()) {
		p.seg.setFree(i)
	}
	first, _ := p.seg.alloc(nil, 1, segLog, 0)
	p.log.pos = logPos{seg: first[0], seq: 1, incarnation: opt.Rand()}
	p.log.chain = first
	p.drain.mu.Lock()
	p.freeze()
	p.thaw()
	_, err = p.checkpoint()
	p.drain.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p.upkeep.scrub.base = p.upkeep.now()
	p.start()
	return p, nil
}

// usableForCreate accepts a blank device and one that an interrupted Create of the same pool left: labels, but no
// checkpoint.
func usableForCreate(d disk.Device, pool block.GUID) error {
	l, err := label.Probe(d)
	if errors.Is(err, ErrBlank) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Pool == pool {
		r, err := label.ReadRing(d, l.Size, pool)
		if err != nil {
			return err
		}
		if r == nil {
			return nil
		}
	}
	return &ErrForeign{Device: d.Name(), Found: fmt.Sprintf("cStor pool %s (%v)", l.Name, l.Pool)}
}

// preparePool returns a pool without devices and space; see build.
func preparePool(l *label.Label, devs []disk.Device, opt Options) *Pool {
	p := &Pool{
		cfg: Config{Name: l.Name, Owner: l.Owner, GUID: l.Pool}, opt: opt, devs: devs, stuck: map[disk.Device]bool{}, cache: newPageCache(opt.PageCacheBytes),
		nextPageID: opt.Rand(), kick: make(chan struct{}, 1), quit: make(chan struct{}), broken: make(chan struct{}), stopped: make(chan struct{}),
	}
	p.labels.now.Store(l.Clone())
	p.compression.Store(uint32(opt.Compression))
	p.read.gone = make(chan struct{}, 1)
	p.flush.cond = sync.NewCond(&p.flush.mu)
	p.cycles.cond = sync.NewCond(&p.cycles.mu)
	p.idx.room = sync.NewCond(&p.idx.mu)
	p.idx.byName = map[string]*Replica{}
	p.idx.soft = opt.DeltaEntries / 2
	p.idx.dirs.limit, p.idx.dirs.pages = opt.PageCacheBytes/2, p.cache
	for i := range p.idx.tables {
		p.idx.tables[i] = index.NewTable(opt.DeltaEntries)
	}
	p.log.init()
	p.cleaner.init(p)
	p.pace.cond, p.pace.off = sync.NewCond(&p.pace.mu), opt.Manual
	p.upkeep.init()
	if opt.Manual {
		p.upkeep.now = func() time.Time { return time.Unix(0, 0) }
	}
	p.drain.writer.buf, p.drain.cold.buf = newGroup(), newGroup()
	return p
}

// build gives the pool its raid groups and its space, all segments taken.
func (p *Pool) build(l *label.Label, members []*member, devs []*raid.Device) error {
	p.devices.Store(&members)
	groups, err := p.newGroups(l, devs)
	if err != nil {
		return err
	}
	p.seg = newSegments(newSpace(groups, l.Spans), uint(bits.TrailingZeros64(uint64(l.SegmentBytes))))
	for i := range p.seg.kind {
		p.seg.kind[i] = segLog
	}
	return nil
}

// CreateReplica makes an empty replica of size bytes, a multiple of 512, with a fresh GUID. It is stable when it
// returns. Wraps ErrExists, ErrTooLarge.
func (p *Pool) CreateReplica(name string, size int64) (*Replica, error) {
	r, err := p.createReplica(name, size)
	if err != nil {
		return nil, p.wrap(fmt.Sprintf("create replica %q", name), err)
	}
	return r, nil
}

func (p *Pool) createReplica(name string, size int64) (*Replica, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	r := p.newReplica(name, p.opt.newGUID(), size)
	if err := p.begin(nil, 0, 0, wal.Len(wal.Create, 0, len(name)), nil); err != nil {
		return nil, err
	}
	err := func() error {
		defer p.end(0)
		p.idx.mu.RLock()
		slot, err := p.freeSlot(name)
		if err == nil {
			err = p.mayGrow(replicaRoot(name, "", size), false)
		}
		p.idx.mu.RUnlock()
		if err != nil {
			p.releaseSpare()
			return err
		}
		r.slot = slot
		if err := p.add(&wal.Record{Kind: wal.Create, Slot: r.slot, Block: uint64(size), GUID: r.guid, Name: name}, nil, 0); err != nil {
			return err
		}
		if err := p.endUnit(); err != nil {
			return err
		}
		p.register(r)
		return nil
	}()
	if err == nil {
		err = p.Sync()
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// freeSlot returns the slot for a new replica of that name. The index lock is held.
func (p *Pool) freeSlot(name string) (uint32, error) {
	slot := 0
	for slot < len(p.idx.bySlot) && p.idx.bySlot[slot] != nil {
		slot++
	}
	switch {
	case p.idx.byName[name] != nil:
		return 0, ErrExists
	case slot >= MaxReplicas:
		return 0, fmt.Errorf("%d replicas: %w", slot, ErrTooLarge)
	}
	return uint32(slot), nil
}

func (p *Pool) newReplica(name string, guid block.GUID, size int64) *Replica {
	r := &Replica{p: p, name: name, guid: guid}
	r.size.Store(size)
	return r
}

// register makes r known. The log's lock is held, or nobody else is there.
func (p *Pool) register(r *Replica) {
	p.idx.mu.Lock()
	for len(p.idx.bySlot) <= int(r.slot) {
		p.idx.bySlot = append(p.idx.bySlot, nil)
	}
	p.idx.bySlot[r.slot] = r
	p.idx.byName[r.name] = r
	r.weigh()
	p.idx.mu.Unlock()
}

// DestroyReplica removes a replica with all its data and snapshots. That is stable when it returns; the space counts as
// free at once and becomes usable in the background. Wraps ErrNotFound, and ErrInUse when there are clones of it.
func (p *Pool) DestroyReplica(name string) error {
	err := p.destroyReplica(name)
	if err == nil {
		err = p.Sync()
	}
	if err != nil {
		return p.wrap(fmt.Sprintf("destroy replica %q", name), err)
	}
	p.wake()
	return nil
}

func (p *Pool) destroyReplica(name string) error {
	if err := p.begin(nil, 0, 0, wal.Len(wal.Destroy, 0, 0), nil); err != nil {
		return err
	}
	defer p.end(0)
	r := p.Replica(name)
	if r == nil {
		p.releaseSpare()
		return ErrNotFound
	}
	p.idx.mu.RLock()
	clones := r.clones("")
	p.idx.mu.RUnlock()
	if len(clones) > 0 {
		p.releaseSpare()
		return fmt.Errorf("%w by %s", ErrInUse, strings.Join(clones, ", "))
	}
	if err := p.add(&wal.Record{Kind: wal.Destroy, Slot: r.slot, GUID: r.guid}, nil, 0); err != nil {
		return err
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	p.unregister(r)
	p.freeable.Store(true)
	return nil
}

func (p *Pool) unregister(r *Replica) {
	p.idx.mu.Lock()
	r.destroyed = true
	delete(p.idx.byName, r.name)
	p.idx.mu.Unlock()
}

// Close makes a checkpoint, flushes and closes the devices. Calls under way fail with ErrClosed or complete. The error
// says that the checkpoint or a device failed; the pool is closed nevertheless, and what was synced is safe.
func (p *Pool) Close() error {
	if !p.closed.CompareAndSwap(false, true) {
		return ErrClosed
	}
	if p.offline != nil {
		return p.closeDevices()
	}
	close(p.quit)
	p.cycles.finish(0, false, false, 0, true)
	p.idx.mu.Lock()
	p.idx.room.Broadcast()
	p.idx.mu.Unlock()
	p.pace.end()
	<-p.stopped
	<-p.upkeep.stopped
	p.running.Store(false)
	p.log.mu.Lock() // appends under way are over, later ones see closed
	p.log.mu.Unlock()
	p.pace.end() // for who was slowed down meanwhile
	err := p.failure()
	if err == nil {
		err = p.cycle()
	}
	p.drain.cycle.Lock()
	p.drain.ended = true
	p.drain.cycle.Unlock()
	p.commits.wait()
	p.flush.others.Wait()
	if e := p.closeDevices(); err == nil {
		err = e
	}
	if err != nil {
		return p.wrap("close", err)
	}
	return nil
}
