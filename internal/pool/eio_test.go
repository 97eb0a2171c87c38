package pool

import (
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// faultyActs are the operations of the tests with faults.
var faultyActs = slices.Concat(acts, []act{cycleAct, cleanAct, {"read", 40, nil, (*actor).read}})

// TestEveryOperationFails lets every single operation of a device fail with EIO in turn, in the life of a pool from its
// creation on. Nothing that happened before may be lost, nothing that failed may be half there. A pool with redundancy
// goes on.
func TestEveryOperationFails(t *testing.T) {
	seed := seedOf(t)
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := rand.New(rand.NewPCG(seed, 2))
		failed := map[bool]int{}
		enough := func() bool { return failed[false] >= 5 && (failed[true] >= 15 || l.parity(0) > 0) }
		for round := uint64(0); round < 4 && !enough(); round++ { // another workload, if this one hardly reads
			over := make([]bool, l.devices())
			for n := 1; slices.Contains(over, false); n++ {
				dev := rng.IntN(len(over))
				if !over[dev] {
					pool, reached := failOperation(t, l, seed+round, dev, int64(n))
					over[dev] = !reached
					failed[pool]++
				}
				if l.parity(0) > 0 && !*everyOp {
					n += rng.IntN(6)
				}
			}
		}
		t.Logf("%d operations of devices failed, in %d cases with the pool", failed[true]+failed[false], failed[true])
		if !enough() {
			t.Error("too few failures")
		}
	})
}

// failOperation runs the workload with the n-th operation of one device failing, and of the next one too where two may
// fail. It returns whether the pool failed,
// and whether the workload got that far.
func failOperation(t *testing.T, l layout, seed uint64, dev int, n int64) (failed, reached bool) {
	mems := l.blank(8 << 20)
	mems[dev].Inject(disk.Faults{FailOp: n})
	if l.parity(0) > 1 {
		mems[(dev+1)%len(mems)].Inject(disk.Faults{FailOp: n})
	}
	opt := Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 16 << 10, Deadline: time.Minute}
	cfg := Config{Name: "eio", GUID: block.NewGUID()}
	p, err := Create(l.arrange(mems), cfg, opt)
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount = 600, 3
	if l.parity(0) == 0 {
		a.faulty, a.faults = mems[dev].Name(), []error{syscall.EIO}
	}
	if err == nil {
		for i := 0; i < 50 && p.failure() == nil; i++ {
			a.step(faultyActs)
		}
		failed = p.failure() != nil
		reached = mems[dev].Ops() >= n
		mems = disk.KillAll(mems)
		p.Close()
		if failed && l.parity(0) > 0 {
			a.fatalf("operation %d of device %d: %v", n, dev, p.failure())
		}
	} else {
		failed, reached = l.parity(0) == 0, true
		a.note("create: %v", err)
		mems = disk.KillAll(mems)
	}
	q, err2 := Open(devicesOf(mems), opt)
	if err != nil && err2 != nil {
		q, err2 = Create(l.arrange(mems), cfg, opt)
	}
	if err2 != nil {
		a.fatalf("device %d operation %d: then open: %v", dev, n, err2)
	}
	a.p = q
	a.note("device %d operation %d failed", dev, n)
	a.recover(true)
	must(t, q.Close())
	return failed, reached
}

// TestSilentlyLostWrites has one device accept writes from some moment on without keeping them. Without redundancy what
// is read is what was written or an error, before and after the pool is opened again; with redundancy nothing is lost.
func TestSilentlyLostWrites(t *testing.T) {
	seed := seedOf(t)
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		cover := map[string]int{}
		for i := range uint64(12) {
			loseWrites(t, l, seed+i, cover)
		}
		floors := map[string]int{"errors of a device": 10, "opened": 1}
		if l.parity(0) > 0 {
			floors = map[string]int{"blocks repaired": 20}
		}
		demand(t, cover, floors)
	})
}

func loseWrites(t *testing.T, l layout, seed uint64, cover map[string]int) {
	mems := l.blank(8 << 20)
	opt := Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 16 << 10, NoDiscard: seed%2 == 0, Deadline: time.Minute}
	p, err := Create(l.arrange(mems), Config{Name: "lost"}, opt)
	must(t, err)
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount, a.cover = 600, 3, cover
	a.note("seed %d", seed)
	dev := a.rng.IntN(len(mems))
	if l.parity(0) == 0 {
		a.faulty, a.faults = mems[dev].Name(), []error{ErrChecksum}
	}
	mems[dev].Inject(disk.Faults{LoseFrom: 30 + a.rng.Int64N(100)})
	for i := 0; i < 120 && p.failure() == nil; i++ {
		a.step(faultyActs)
	}
	cover["blocks repaired"] += int(p.Stats().BlocksRepaired)
	mems = disk.KillAll(mems)
	p.Close()
	q, err := Open(devicesOf(mems), opt)
	if a.faulty != "" && (errors.Is(err, ErrDamaged) || errors.Is(err, ErrChecksum)) {
		cover["refused to open"]++
		return
	}
	if err != nil {
		a.fatalf("open: %v", err)
	}
	cover["opened"]++
	if a.faulty != "" {
		newHistoryOfBlocks(a.log).look(t, q)
	} else {
		a.p = q
		a.recover(true)
		cover["blocks repaired"] += int(q.Stats().BlocksRepaired)
	}
	must(t, q.Close())
}

// blockHistory knows every content that every block of every replica ever had.
type blockHistory map[string]map[uint64]map[uint32]bool

func newHistoryOfBlocks(log []happening) blockHistory {
	h := blockHistory{}
	s := refPool{}
	for i := range log {
		log[i].f(s)
		for name, r := range s {
			if h[name] == nil {
				h[name] = map[uint64]map[uint32]bool{}
			}
			for b := range blocksOf(r.size) {
				if x := r.head(b); x.stored {
					if h[name][b] == nil {
						h[name][b] = map[uint32]bool{}
					}
					h[name][b][x.sum] = true
				}
			}
		}
	}
	return h
}

// look reads every block, which must be one of the contents it ever had, or an error. It returns the number of errors.
func (h blockHistory) look(t *testing.T, p *Pool) (n int) {
	t.Helper()
	for _, r := range p.Replicas() {
		dst, sum := make([]byte, block.Size), make([]uint32, 1)
		for b := range r.blocks() {
			if err := r.Read(b, dst, sum); errors.Is(err, ErrChecksum) {
				n++
				continue
			} else if err != nil {
				t.Fatalf("replica %s block %d: %v", r.Name(), b, err)
			}
			if s := block.Sum(dst); s != block.ZeroSum && !h[r.Name()][b][s] || s != sum[0] {
				t.Fatalf("replica %s block %d: content that nobody wrote", r.Name(), b)
			}
		}
	}
	return n
}
