package pool

import (
	"errors"
	"slices"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// The log takes one append at a time, and in a device that is waited for that takes long. So who comes to Apply meanwhile
// lines up, and the first of them takes the others along: the next append has the operations of all of them in one
// batch, which replay takes or leaves as a whole.

// joint lines up callers of Apply. As long as anybody waits, somebody has the lead: he is on his way to the log and hands
// the lead on when he has been there.
type joint struct {
	mu      sync.Mutex
	led     bool
	waiting []*application
}

// application is a unit of Apply: operations that are logged in one go.
type application struct {
	r       *Replica
	ops     []Op
	own     []uint32 // checksums that the caller did not give, in order
	pk      *packer
	entries int  // of the delta, reserved
	blocks  int  // that the operations write
	data    int  // blocks of the data area
	header  int  // bytes at most
	shown   bool // entries counts with snapshots

	turn  chan bool // told once, when it waits: true, it has the lead; false, it has been carried out, with err
	err   error
	group []*application // whom the leader takes along, beginning with himself
}

// Limits of what is appended together with others.
const (
	jointUnits  = 64
	jointBlocks = 1 << 20 >> block.Shift
)

// errShown says that the replica has got a snapshot since the entries were counted.
var errShown = errors.New("snapshots must be counted with")

var applications = sync.Pool{New: func() any { return &application{turn: make(chan bool, 1)} }}

func getApplication() *application { return applications.Get().(*application) }

// release gives u back, which nobody else knows any more.
func (u *application) release() {
	clear(u.group)
	*u = application{turn: u.turn, group: u.group[:0]}
	applications.Put(u)
}

// append logs the operations of u, for which their chunks are held, and makes them visible. It wraps errShown when
// nothing was done because entries is too low.
func (p *Pool) append(u *application) error {
	if err := p.ready(u.entries, u.blocks > 0); err != nil {
		return err
	}
	if leads, err := p.line(u); !leads {
		return err
	}
	return p.lead(u)
}

// line waits until u has the lead or somebody else has carried it out. When the pool fails it does not wait for who
// is in a device that may never answer.
func (p *Pool) line(u *application) (leads bool, err error) {
	j := &p.joint
	j.mu.Lock()
	if !j.led {
		j.led = true
		j.mu.Unlock()
		return true, nil
	}
	j.waiting = append(j.waiting, u)
	j.mu.Unlock()
	select {
	case leads = <-u.turn:
		return leads, u.err
	case <-p.broken:
	}
	if j.leave(u) {
		p.unreserve(u.entries)
		return false, p.failure()
	}
	p.log.mu.Lock() // who makes u visible has it; it is taken away from who is in a device, and he will do nothing with u then
	p.log.mu.Unlock()
	select {
	case leads = <-u.turn:
		return leads, u.err
	default:
		return false, p.failure()
	}
}

// leave takes u out of the line, unless it has been given the lead or is taken along already.
func (j *joint) leave(u *application) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.waiting, u)
	if i >= 0 {
		j.waiting = slices.Delete(j.waiting, i, i+1)
	}
	return i >= 0
}

// pass hands the lead on.
func (j *joint) pass() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.led = len(j.waiting) > 0; j.led {
		next := j.waiting[0]
		j.waiting = slices.Delete(j.waiting, 0, 1)
		next.turn <- true
	}
}

// lead carries out u and whoever waits and fits into the same batch.
func (p *Pool) lead(u *application) (err error) {
	var replaced func() int64
	if u.blocks > 0 {
		replaced = func() int64 { return u.r.replacedBy(u.ops) }
	}
	if err := p.enter(u.r, u.entries, u.data, u.header, replaced, &p.joint); err != nil {
		p.joint.pass()
		return err
	}
	entries := u.entries
	defer func() {
		p.end(entries)
		p.joint.pass()
		for i := 1; i < len(u.group); i++ {
			u.group[i].err = err
			u.group[i].turn <- false
		}
	}()
	if !u.shown && u.r.hasSnapshots() { // a rebuild took one over meanwhile
		p.releaseSpare()
		return errShown
	}
	if p.flush.shared.Load() { // whom a flush released are about to come
		p.yield()
	}
	entries = p.gather(u)
	first := 0
	for _, x := range u.group {
		if err := p.lay(x, first); err != nil {
			return err
		}
		first += len(x.ops)
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	p.indexOps(u.group)
	return nil
}

// gather makes the group of u, whose place in the log is reserved, of those who wait for as long as they come into the
// same batch without anything that one of them might have to wait for. It returns the entries of all of them.
func (p *Pool) gather(u *application) (entries int) {
	j := &p.joint
	u.group = append(u.group, u)
	entries = u.entries
	data, header := u.data, wal.FixedLen+u.header
	room, most := p.room(), p.unitEntries()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == 0 || p.seg.freeCount() < p.seg.reserve() || p.pagesFit() != nil {
		return entries
	}
	n, written := 0, u.blocks
	for _, x := range j.waiting {
		data, header, written = data+x.data, header+x.header, written+x.blocks
		blocks := blocksFor(header)
		if n == jointUnits-1 || entries+x.entries > most || data > jointBlocks || blocks > wal.MaxHeaderBlocks || blocks+data > room || !x.fit() ||
			p.full(written, nothingReplaced) != nil {
			break
		}
		entries += x.entries
		n++
	}
	u.group = append(u.group, j.waiting[:n]...)
	j.waiting = slices.Delete(j.waiting, 0, n)
	return entries
}

func nothingReplaced() int64 { return 0 }

// fit reports whether nothing has happened to the replica meanwhile that u has to find out itself.
func (u *application) fit() bool {
	x := &u.r.p.idx
	x.mu.RLock()
	defer x.mu.RUnlock()
	return !u.r.destroyed && (u.shown || len(u.r.snaps) == 0)
}

// lay adds the operations of u to the open batch, numbered from first on.
func (p *Pool) lay(u *application, first int) error {
	given := u.own
	for i := range u.ops {
		o := &u.ops[i]
		rec := wal.Record{Kind: walKind[o.Kind], Slot: u.r.slot, Block: o.Block, Count: o.Count, Version: o.Version, Sums: o.Sums}
		switch {
		case o.Kind == OpMark:
			rec.Block, rec.Count, rec.Sums = 0, 0, nil
		case o.Kind == OpDiscard:
			rec.Sums = nil
		case o.Sums == nil:
			rec.Sums, given = given[:o.Count], given[o.Count:]
		}
		var packed []byte
		if o.Kind == OpWrite {
			rec.Lens, packed = u.pk.next(int(o.Count))
		}
		if err := p.addPacked(&rec, o.Data, packed, first+i); err != nil {
			return err
		}
	}
	return nil
}

// indexOps puts the operations of a group, which have been laid one unit after the other, into the delta. An operation
// becomes visible at once, together with Applied.
func (p *Pool) indexOps(group []*application) {
	parts := p.log.parts
	p.idx.mu.Lock()
	held, n := 0, 0
	for _, u := range group {
		own := u.own
		for i := range u.ops {
			o := &u.ops[i]
			switch o.Kind {
			case OpWrite:
				sums := o.Sums
				if sums == nil {
					sums, own = own[:o.Count], own[o.Count:]
				}
				for len(parts) > 0 && parts[0].rec == n {
					x := &parts[0]
					p.insertData(u.r, o.Block+uint64(x.first), x.area, x.lens, sums[x.first:x.first+x.count], o.Version)
					parts = parts[1:]
				}
				held += int(o.Count)
			case OpDiscard:
				p.insertGone(u.r, o.Block, uint64(o.Count), index.Tombstone, o.Version)
				held += block.ChunkBlocks
			}
			u.r.applied = o.Version
			n++
			if held >= lockStep {
				p.idx.mu.Unlock()
				held = 0
				p.idx.mu.Lock()
			}
		}
	}
	p.idx.mu.Unlock()
}
