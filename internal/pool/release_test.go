package pool

import (
	"testing"

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
