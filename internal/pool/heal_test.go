package pool

import (
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// newHealTest returns a pool of a layout with a model of what is in it.
func newHealTest(t *testing.T, l layout, size int64) *sweep {
	t.Helper()
	s := newSweep(t, l, testRand(t))
	s.p, s.mems = newLayoutPool(t, l, size, s.opt)
	s.synced()
	return s
}

// churn changes what is in the pool: small and large writes, discards, a replica that comes and goes.
func (s *sweep) churn(rounds int) {
	s.t.Helper()
	for range rounds {
		for _, name := range []string{"a", "b"} {
			if s.now[name] == nil {
				must(s.t, s.create(name, 1200))
			}
			b := uint64(s.rng.IntN(1000))
			must(s.t, s.ops(name, Op{Kind: OpWrite, Block: b, Count: uint32(1 + s.rng.IntN(120))}))
			must(s.t, s.ops(name, Op{Kind: OpWrite, Block: uint64(s.rng.IntN(1200)), Count: 1}))
			must(s.t, s.ops(name, Op{Kind: OpDiscard, Block: uint64(s.rng.IntN(1100)), Count: uint32(1 + s.rng.IntN(40))}))
		}
		switch s.rng.IntN(5) {
		case 0:
			must(s.t, s.p.cycle())
		case 1:
			must(s.t, s.sync())
		case 2:
			must(s.t, s.destroy("b"))
		}
	}
}

// same fails the test unless the pool holds what the model does.
func (s *sweep) same() {
	s.t.Helper()
	if d := s.differs(s.now); d != "" {
		s.fatalf("%s", d)
	}
	s.check()
}

// whole fails the test unless every device has everything: a scrub finds nothing, and it can all be read when any
// devices that the layout can spare are gone.
func (s *sweep) whole() {
	s.t.Helper()
	s.p.rest()
	for _, d := range s.p.Devices() {
		if d.State != DeviceOnline || d.Stale > 0 || d.ToResilver > 0 {
			s.fatalf("device %+v", d)
		}
	}
	if st := s.p.Stats(); st.Health != HealthOnline {
		s.fatalf("pool is %s: %s", st.Health, st.Failure)
	}
	s.p.rest()
	must(s.t, s.p.cycle()) // the labels follow the checkpoint
	for _, m := range s.p.labels.now.Load().Members {
		if m.Out || m.Left || m.Replacing {
			s.fatalf("labels say %+v", m)
		}
	}
	if x := s.scrub(); x.Repaired != 0 || x.Errors != 0 {
		s.fatalf("scrub: %+v %v", x, s.p.Damage())
	}
	s.same()
}

// wholeAgain closes the pool, opens it again, and fails the test unless every device has everything.
func (s *sweep) wholeAgain() {
	s.t.Helper()
	must(s.t, s.p.Close())
	reopenAll(s.mems)
	s.open()
	s.whole()
}

// scrub scrubs the pool and returns what came of it.
func (s *sweep) scrub() Progress {
	s.t.Helper()
	must(s.t, s.p.Scrub(ScrubOptions{}))
	s.p.rest()
	x := s.p.Activity().Scrub
	if x.State != ActivityDone || x.Done != x.Total || x.Total == 0 && len(s.now) > 0 {
		s.fatalf("scrub: %+v", x)
	}
	return x
}

// goAway makes a device disappear, and the pool notice.
func (s *sweep) goAway(i int) {
	s.t.Helper()
	s.mems[i].Disappear()
	here := func() bool { // it may have been replaced meanwhile
		return slices.ContainsFunc(s.p.members(), func(m *member) bool { return m.online() && m.dev.Name() == s.mems[i].Name() })
	}
	for here() {
		must(s.t, s.create("noise", 600))
		must(s.t, s.ops("noise", Op{Kind: OpWrite, Block: uint64(s.rng.IntN(500)), Count: 100}))
		must(s.t, s.sync())
		must(s.t, s.destroy("noise"))
		must(s.t, s.p.cycle()) // reaches every device
	}
	s.p.rest()
}

// comeBack gives the pool a device back.
func (s *sweep) comeBack(i int) {
	s.t.Helper()
	s.p.rest()
	s.mems[i].Reappear()
	s.mems[i].Reopen()
	must(s.t, s.p.Return(s.mems[i]))
}

// TestDeviceReturns: devices go away, the pool is used for long, and they come back: everything is copied to them that
// is live, and nothing else.
func TestDeviceReturns(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.churn(10)
		for round := range 2 {
			for _, v := range l.victims() {
				s.goAway(v)
			}
			s.churn(20 + 20*round)
			if h := s.p.Stats().Health; h != HealthDegraded {
				t.Fatal(h)
			}
			for _, v := range l.victims() {
				if err := s.p.Return(s.mems[v]); err == nil {
					t.Fatal("a device that is not there is back")
				}
				s.comeBack(v)
				if err := s.p.Return(s.mems[v]); err == nil {
					t.Fatal("a device is back twice")
				}
			}
			s.churn(3)
			s.p.rest()
			if d := s.p.Damage(); len(d) > 0 {
				t.Fatal(d)
			}
			s.whole()
			x := s.p.Activity().Resilver
			if x.State != ActivityDone || x.Done != x.Total || x.Total == 0 || x.Errors != 0 || x.Ended.IsZero() {
				t.Fatalf("%+v %+v", x, s.p.Damage())
			}
		}
		s.othersGo()
		must(t, s.p.Close())
	})
}

// othersGo takes away as many devices as may be missing, but not those that went before, and reads everything.
func (s *sweep) othersGo() {
	s.t.Helper()
	first := 0
	for i, sh := range s.layout.groups {
		for k := range s.layout.parity(i) {
			s.goAway(first + (k*2+2)%sh.n)
		}
		first += sh.n
	}
	s.same()
}

// TestResilverGoesOn: the pool is closed, or killed, while a device is resilvered.
func TestResilverGoesOn(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		for _, how := range []string{"close", "kill", "power cut"} {
			s := newHealTest(t, l, 24<<20)
			s.churn(10)
			for _, v := range l.victims() {
				s.goAway(v)
			}
			s.churn(20)
			waits, resume := s.mems[l.victims()[len(l.victims())-1]].HangIf(func(op string, off, _ int64) bool { return op == "write" && off >= 1<<20 })
			for _, v := range l.victims() {
				s.comeBack(v)
			}
			<-waits // the first block is on its way
			switch how {
			case "close":
				resume()
				must(t, s.p.Close())
				reopenAll(s.mems)
				s.open()
				s.synced()
			case "kill":
				old := s.mems
				s.mems = disk.KillAll(s.mems)
				resume()
				_ = old
				s.crash(true)
			case "power cut":
				disk.StopAll(s.mems)
				resume()
				s.p.Close()
				var found []*disk.Mem
				for _, m := range s.mems {
					found = append(found, m.PowerCut(disk.Fate(s.rng.IntN(4)), s.rng))
				}
				s.mems = found
				s.crash(false)
			}
			s.churn(2)
			s.whole()
			s.othersGo()
			must(t, s.p.Close())
		}
	})
}
