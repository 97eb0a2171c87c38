package pool

import (
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestReleaseInSteps destroys a replica of more chunks than one cycle takes apart, with a restart in between.
func TestReleaseInSteps(t *testing.T) {
	defer func(n int) { releaseStep = n }(releaseStep)
	releaseStep = 3
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, NoDiscard: true})
	fresh := p.Stats()
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	for i := range uint64(128) {
		must(t, r.Apply([]Op{{Kind: OpWrite, Block: i * 64, Count: 40, Version: ver(i + 1), Data: noise(40, i)}}))
	}
	must(t, p.cycle())
	drains := p.Stats().Drains
	must(t, p.DestroyReplica("v"))
	must(t, p.cycle())
	must(t, p.Check())
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	defer q.Close()
	q.wake()
	waitUntil(q, func() bool { return q.Stats().FreeSegments >= fresh.FreeSegments-4 })
	must(t, q.Check())
	if n := p.Stats().Drains - drains + q.Stats().Drains; n < 6 {
		t.Errorf("taken apart in %d cycles", n)
	}
}

// TestInterruptedDestroy makes a checkpoint while a destroyed replica is still being taken apart.
func TestInterruptedDestroy(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, NoDiscard: true})
	fresh := p.Stats()
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	for i := range uint64(16) {
		must(t, r.Apply([]Op{write(i*256, 256, i+1)}))
	}
	must(t, p.cycle())
	p.drain.cycle.Lock()
	neverAtEase(p)
	p.drain.cycle.Unlock()
	must(t, p.DestroyReplica("v"))
	must(t, p.cycle())
	if p.idx.bySlot[0] != r || len(r.dir) == 0 {
		t.Fatal("taken apart already")
	}
	must(t, p.Check())
	n, err := p.CreateReplica("v", 1<<20) // the name is free, the slot is not
	must(t, err)
	must(t, n.Apply([]Op{write(0, 1, 7)}))
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	defer q.Close()
	if v := q.Replica("v"); len(q.Replicas()) != 1 || v.GUID() != n.GUID() || v.Applied() != ver(7) {
		t.Fatal("the wrong replica")
	}
	q.wake()
	waitUntil(q, func() bool { return q.Stats().FreeSegments >= fresh.FreeSegments-4 })
	must(t, q.Check())
}

// TestReleaseDamaged destroys a replica of which a part of the index cannot be read: the space of the rest comes back, that of
// the part counts as taken, and nothing else suffers. When it can be read again it comes back too.
func TestReleaseDamaged(t *testing.T) {
	const chunks, blocks = 100, 8
	for _, x := range []struct {
		name string
		at   func(r *Replica) uint64 // address of what is damaged
		left int                     // chunks of which nothing is known without it
	}{
		{"page", func(r *Replica) uint64 { d := refOf(t, r, 7); return d.pageAddr() }, 1},
		{"directory block", func(r *Replica) uint64 { return r.dir[0].node.slots[1].addr }, dirSpan},
		{"node", func(r *Replica) uint64 { return r.dir[0].addr }, chunks},
	} {
		t.Run(x.name, func(t *testing.T) {
			opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true}
			p, m := newMemPool(t, 64<<20, opt)
			other, err := p.CreateReplica("other", 1<<20)
			must(t, err)
			must(t, other.Apply([]Op{write(0, 1, 1)}))
			must(t, p.cycle())
			without := p.Stats().Allocated
			r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
			must(t, err)
			for i := range uint64(chunks) {
				must(t, r.Apply([]Op{{Kind: OpWrite, Block: i * block.ChunkBlocks, Count: blocks, Version: ver(i + 1), Data: noise(blocks, i)}}))
			}
			must(t, p.cycle())
			_, off := p.where(x.at(r))
			must(t, p.Close())
			m.Reopen()
			m.FlipBit(off+50, 1)
			p, err = Open([]disk.Device{m}, opt)
			must(t, err)
			must(t, p.DestroyReplica("v"))
			for range 3 {
				must(t, p.cycle())
			}
			p.idx.mu.RLock()
			dying := p.anyDying()
			p.idx.mu.RUnlock()
			if dying {
				t.Error("there is more to be done")
			}
			least := int64(x.left * blocks * block.Size)
			if n := p.Stats().Allocated - without; n < least || n > least+64<<10 {
				t.Errorf("%d bytes are taken, %d of them by data", n, least)
			}
			must(t, p.Replica("other").Apply([]Op{write(0, 1, 2)}))
			_, err = p.CreateReplica("v", 1<<20)
			must(t, err)
			must(t, p.Close())

			m.Reopen()
			m.FlipBit(off+50, 1)
			p, err = Open([]disk.Device{m}, opt)
			must(t, err)
			defer p.Close()
			for range 3 {
				must(t, p.cycle())
			}
			must(t, p.Check())
			if n := p.Stats().Allocated - without; n > 8<<10 || p.idx.bySlot[1] != nil && p.idx.bySlot[1].destroyed {
				t.Errorf("%d bytes are still taken", n)
			}
		})
	}
}

// TestDestroyedIsResilvered resilvers a device while a replica that it lacks parts of is taken apart, and restarts: what a
// checkpoint still refers to is on that device, which is enough to go on.
func TestDestroyedIsResilvered(t *testing.T) {
	defer func(n int) { releaseStep = n }(releaseStep)
	releaseStep = 1
	const chunks = 30 // more than a resilver makes checkpoints
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, inlineBytes: 200, historyBytes: 600}
	p, mems := newLayoutPool(t, layouts[2], 24<<20, opt)
	fresh := p.Stats()
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	mems[0].Disappear()
	for v := uint64(1); v < 4; v++ {
		for i := range uint64(chunks) {
			must(t, r.Apply([]Op{write(i*block.ChunkBlocks, 20, 10*v+i)}))
		}
		must(t, r.Apply([]Op{snap(fmt.Sprint(v), 10*v+chunks)}))
	}
	must(t, p.cycle())
	if d := refOf(t, r, chunks-1); !d.deep {
		t.Error("there are no history pages")
	}
	must(t, p.Close())
	reopenAll(mems)
	mems[0].Reappear()

	p = openIdle(t, devicesOf(mems), opt)
	r = p.Replica("v")
	must(t, p.DestroyReplica("v"))
	p.resilver()
	must(t, p.cycle())
	if p.idx.bySlot[0] != r || p.members()[0].dev.Stale() {
		t.Fatalf("taken apart already, or %d units are stale", p.members()[0].dev.StaleCount())
	}
	must(t, closeIdle(p))
	reopenAll(mems)
	verified(devicesOf(mems), t.Errorf)

	p = openIdle(t, devicesOf(mems[:1]), opt)
	for range chunks {
		must(t, p.cycle())
	}
	if s := p.Stats(); p.idx.bySlot[0] != nil || s.ChecksumErrors > 0 || s.FreeSegments < fresh.FreeSegments-4 {
		t.Errorf("the replica was not taken apart: %+v", s)
	}
	must(t, closeIdle(p))
}
