package pool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// hungStripe is a pool of three devices without redundancy, the first of which hangs.
type hungStripe struct {
	t      *testing.T
	p      *Pool
	r      *Replica
	other  *Replica
	third  *Replica
	mems   []*disk.Mem
	on     [3]uint64 // a block of the replica on each device
	resume func()
	victim chan error // of the request that was in the device first
	n      uint64     // last version
}

const hungBlocks = 2048

// hangStripe makes the first device hang at requests of one kind, "" for all, and somebody wait in it.
func hangStripe(t *testing.T, kind string) *hungStripe {
	p, mems := stripeOf(t, 3, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off, Deadline: 100 * time.Millisecond})
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	s := &hungStripe{t: t, p: p, r: r, mems: mems, victim: make(chan error, 1)}
	s.other, err = p.CreateReplica("o", 64<<20)
	must(t, err)
	s.third, err = p.CreateReplica("t", 64<<20)
	must(t, err)
	for s.n < hungBlocks {
		must(t, s.write(s.n))
	}
	must(t, r.Apply([]Op{snap("s", s.next())}))
	must(t, p.cycle())
	must(t, p.Sync())
	for b := range uint64(hungBlocks) {
		var x readScratch
		must(t, r.find(&x, b, 1))
		device, _ := p.where(x.places[0].loc.Addr())
		for i, m := range mems {
			if m.Name() == device {
				s.on[i] = b
			}
		}
	}
	var waits <-chan struct{}
	waits, s.resume = mems[0].HangIf(func(op string, _, _ int64) bool { return kind == "" || op == kind })
	t.Cleanup(s.resume)
	go func() {
		var err error
		for err == nil {
			switch kind {
			case "read":
				s.victim <- r.Read(s.on[0], make([]byte, block.Size), nil)
				return
			case "flush":
				if err = s.write(s.n % hungBlocks); err == nil {
					err = p.Sync()
				}
			default:
				err = s.write(s.n % hungBlocks)
			}
		}
		s.victim <- err
	}()
	<-waits
	return s
}

func (s *hungStripe) next() uint64 { s.n++; return s.n }

func (s *hungStripe) write(b uint64) error { return s.r.Apply([]Op{write(b, 1, s.next())}) }

// stripeOf makes a pool of devices without redundancy.
func stripeOf(t *testing.T, n int, opt Options) (*Pool, []*disk.Mem) {
	var mems []*disk.Mem
	var devs []disk.Device
	for i := range n {
		mems = append(mems, disk.NewMem(fmt.Sprint("mem", i), 16<<20))
		devs = append(devs, mems[i])
	}
	p, err := Create(Stripe(devs...), Config{Name: "test"}, opt)
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p, mems
}

// blames fails the test unless the error says that the first device hangs.
func (s *hungStripe) blames(what string, err error) {
	s.t.Helper()
	if err == nil || !strings.Contains(err.Error(), "mem0") || !errors.Is(err, raid.ErrHung) || !strings.Contains(err.Error(), "no answer in time") {
		s.t.Errorf("%s: %v", what, err)
	}
}

// TestHungStripe: when a device without redundancy hangs, whoever waits hears of it, and all that comes after. What other
// devices hold can still be read, and the pool can be closed.
func TestHungStripe(t *testing.T) {
	for _, kind := range []string{"write", "flush", "read"} {
		t.Run("at "+kind, func(t *testing.T) {
			t.Parallel()
			s := hangStripe(t, kind)
			p, r := s.p, s.r
			type result struct {
				what string
				err  error
			}
			results := make(chan result)
			acts := map[string]func(i int) error{
				"sync":   func(int) error { return p.Sync() },
				"create": func(i int) error { _, err := p.CreateReplica(fmt.Sprint("c", i), 1<<20); return err },
				"clone":  func(i int) error { _, err := p.Clone(fmt.Sprint("d", i), "v", "s"); return err },
				"destroy": func(int) error {
					err := p.DestroyReplica("none")
					if errors.Is(err, ErrNotFound) {
						err = nil
					}
					return err
				},
				"state": func(int) error { return r.SetState([]byte("state"), r.Applied()) },
				"apply": func(i int) error { return s.other.Apply([]Op{write(uint64(i%9), 1, uint64(2*i+1))}) },
				"snapshot": func(i int) error {
					return s.third.Apply([]Op{snap(fmt.Sprint(i%9), uint64(2*i+1)), {Kind: OpDeleteSnapshot, Name: fmt.Sprint(i % 9), Version: ver(uint64(2*i + 2))}})
				},
				"cycle": func(int) error { return p.cycle() },
				"scrub": func(int) error { p.rest(); return p.Scrub(ScrubOptions{}) },
			}
			for what, do := range acts {
				go func() {
					for i := 0; ; i++ {
						if err := do(i); err != nil {
							results <- result{what, err}
							return
						}
						runtime.Gosched()
					}
				}()
			}
			for range acts {
				x := <-results
				if s.blames(x.what, x.err); !errors.Is(x.err, ErrFailed) {
					t.Errorf("%s: %v", x.what, x.err)
				}
			}
			if st := p.Stats(); st.Health != HealthFaulted || !strings.Contains(st.Failure, "see to the device") {
				t.Error(st.Health, st.Failure)
			}
			b := make([]byte, block.Size)
			s.blames("read", r.Read(s.on[0], b, nil))
			must(t, r.Read(s.on[1], b, nil))
			must(t, r.Read(s.on[2], b, nil))
			s.blames("add groups", p.AddGroups(Stripe(disk.NewMem("new", 16<<20))))
			s.blames("close", p.Close())
			s.over(kind)
		})
	}
}

// TestCloseOfHungStripe: a pool is closed that does not know yet that a device hangs.
func TestCloseOfHungStripe(t *testing.T) {
	for _, kind := range []string{"write", ""} {
		t.Run("at "+kind, func(t *testing.T) {
			t.Parallel()
			s := hangStripe(t, kind)
			s.blames("close", s.p.Close())
			s.over(kind)
		})
	}
}

// over lets the device go on. What was stuck comes to it now, and does no harm: the pool is opened again.
func (s *hungStripe) over(kind string) {
	t, dev := s.t, s.p.members()[0].dev
	if dev.Stuck() == 0 {
		t.Error("nothing is stuck")
	}
	var devs []disk.Device
	for i, m := range s.mems {
		if err := m.Close(); !errors.Is(err, os.ErrClosed) && i > 0 {
			t.Error("a device that answers was not closed")
		}
		m.Reopen()
		devs = append(devs, m)
	}
	s.resume()
	if err := <-s.victim; err == nil && kind != "read" {
		t.Error("what was stuck has worked, in a pool that has failed")
	}
	for dev.Stuck() > 0 {
		runtime.Gosched()
	}
	q, err := Open(devs, Options{})
	must(t, err)
	r, b := q.Replica("v"), make([]byte, block.Size)
	for i := range uint64(hungBlocks) {
		must(t, r.Read(i, b, nil))
		must(t, r.ReadSnapshot("s", i, b, nil))
		if !bytes.Equal(b, fill(1, i+1)) {
			t.Fatal("block", i)
		}
	}
	must(t, q.Check())
	must(t, q.Close())
}

// TestStuckAndReplaced has a stripe's device hang in a write or a flush while another takes its place: what only the old one
// has is not taken for written, and nobody waits for it.
func TestStuckAndReplaced(t *testing.T) {
	for _, kind := range []string{"write", "flush"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			p, mems := stripeOf(t, 1, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off, Deadline: 100 * time.Millisecond})
			r, err := p.CreateReplica("v", 4<<20)
			must(t, err)
			must(t, r.Apply([]Op{write(0, 20, 1)}))
			must(t, p.Sync())
			waits, resume := mems[0].HangOp(kind, 1)
			defer resume()
			res := make(chan error, 1)
			go func() {
				err := r.Apply([]Op{write(30, 1, 2)})
				if err == nil {
					err = p.Sync()
				}
				res <- err
			}()
			<-waits
			old := p.members()[0].dev
			must(t, p.Replace(p.members()[0].guid, disk.NewMem("new", 32<<20)))
			for err = nil; err == nil; {
				_, err = p.CreateReplica("w", 1<<20)
				if err == nil {
					err = p.DestroyReplica("w")
				}
			}
			if !errors.Is(err, ErrFailed) || old.State() == raid.Online {
				t.Error(err, old.State())
			}
			resume()
			if err := <-res; err == nil {
				t.Error("a write that no device has that counts is taken for stable")
			}
			p.Close()
		})
	}
}

// TestForcedOutWhileReplaced takes a stripe's device out, as who cannot write its labels does, while another is to take its
// place and has nothing yet: all was flushed, but is gone, and the pool does not go on without it.
func TestForcedOutWhileReplaced(t *testing.T) {
	p, mems := stripeOf(t, 1, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 20, 1)}))
	must(t, p.Sync())
	old := p.members()[0]
	waits, resume := mems[0].HangIf(func(op string, _, _ int64) bool { return op == "read" })
	defer resume()
	must(t, p.Replace(old.guid, disk.NewMem("new", 32<<20)))
	<-waits // what is to be copied
	old.dev.Fail(errors.New("write labels: input/output error"))
	if err := p.Sync(); !errors.Is(err, ErrFailed) {
		t.Error("flush:", err)
	}
}

// TestHungInMerge has a device hang in a read that a rebuild makes while it holds the log: the others go on.
func TestHungInMerge(t *testing.T) {
	p, mems := stripeOf(t, 1, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off, Deadline: 100 * time.Millisecond})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), snap("s", 2), write(0, 1, 5)}))
	must(t, p.cycle())
	c := &Chunk{Scan: ver(10), First: 0, Count: 1, Snapshots: []Snapshot{{Name: "s", Version: ver(2), Size: 4 << 20}}}
	for i := range c.Versions {
		c.Sums[i] = block.ZeroSum
	}
	c.Versions[0], c.Stored[0], c.Sums[0] = ver(1), true, block.Sum(fill(1, 1)) // which is here, below what is newer
	reads := 0
	waits, resume := mems[0].HangIf(func(op string, _, n int64) bool {
		if op == "read" && n == block.Size {
			reads++
		}
		return op == "read" && reads >= 2 // the first is of the plan without the lock
	})
	defer resume()
	res := make(chan error, 1)
	go func() { _, err := r.Merge(c); res <- err }()
	<-waits
	for err == nil {
		if _, err = p.CreateReplica("w", 1<<20); err == nil {
			err = p.DestroyReplica("w")
		}
	}
	if !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	if err := <-res; !errors.Is(err, raid.ErrHung) && !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	resume()
	p.Close()
}

// TestHungInReplay has a device hang in the read of a state record: Open returns.
func TestHungInReplay(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off, Deadline: 50 * time.Millisecond}
	p, m := newMemPool(t, 64<<20, opt)
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, p.cycle())
	must(t, r.SetState(bytes.Repeat([]byte{0xab}, 5000), ver(1)))
	k := m.Kill()
	at := int64(0)
	for b := make([]byte, block.Size); b[0] != 0xab || b[block.Size-1] != 0xab; at += block.Size {
		must(t, k.ReadAt(b, at))
	}
	at -= block.Size
	reads := 0
	_, resume := k.HangIf(func(op string, off, _ int64) bool {
		if op == "read" && off == at {
			reads++
		}
		return reads >= 2 && off == at // the first is the scan's
	})
	defer resume()
	if q, err := Open([]disk.Device{k}, opt); err == nil {
		q.Close()
		t.Fatal("opened")
	}
}

// TestHungInResume has a device hang in what Open writes into the log: it returns.
func TestHungInResume(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, Deadline: 50 * time.Millisecond}
	_, m := newMemPool(t, 16<<20, opt)
	k := m.Kill()
	waits, resume := k.HangIf(func(op string, off, _ int64) bool {
		return op == "write" && off >= label.HeadBytes && off < k.Size()-label.TailBytes
	})
	defer resume()
	if q, err := Open([]disk.Device{k}, opt); !errors.Is(err, raid.ErrHung) {
		if err == nil {
			q.Close()
		}
		t.Error(err)
	}
	<-waits
}

// TestHungInCreate has a device hang in each kind of request before there is a raid group: Create returns.
func TestHungInCreate(t *testing.T) {
	for _, kind := range []string{"read", "write", "flush"} {
		mems := []*disk.Mem{disk.NewMem("a", 16<<20), disk.NewMem("b", 16<<20)}
		waits, resume := mems[1].HangOp(kind, 1)
		p, err := Create(Stripe(mems[0], mems[1]), Config{Name: "test"}, Options{SegmentBytes: 256 << 10, Deadline: 10 * time.Millisecond})
		if !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "device b") {
			t.Error(kind, p, err)
		}
		<-waits
		resume()
	}
}
