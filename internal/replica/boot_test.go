package replica

import (
	"encoding/json"
	"log/slog"
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// TestPowerLossIsNoticed starts a server again and again, in the same boot of the machine and in later ones. What a replica
// registers with is in the pool by then.
func TestPowerLossIsNoticed(t *testing.T) {
	p, err := pool.Create(pool.Stripe(disk.NewMem("mem", 256<<20)), pool.Config{Name: "p", Owner: "p"}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var r *pool.Replica
	var registered volume.State
	serve := func(boot string) (stop func()) {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := New(Config{Pool: p, PullListen: l, BootID: boot, Log: slog.New(slog.DiscardHandler)})
		target := accept(t, attachTo(t, s))
		r = p.Replica("r")
		if registered, err = decodeState(r.State()); err != nil {
			t.Fatal(err)
		}
		return func() {
			s.shut()
			s.tasks.Wait()
			target.conn.Close()
		}
	}
	put := func(change func(*volume.State)) {
		t.Helper()
		st, err := decodeState(r.State())
		if err != nil {
			t.Fatal(err)
		}
		change(&st)
		b, err := json.Marshal(st)
		if err == nil {
			err = r.SetState(b, block.Version{Epoch: 1, N: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	killed := func(st *volume.State) { st.Complete, st.Clean = true, false } // as the process left it
	for _, x := range []struct {
		boot    string
		before  func(*volume.State)
		suspect bool
		what    string
		failed  bool // the pool, before
	}{
		{"1", nil, false, "new", false},
		{"1", killed, false, "killed", false},
		{"2", func(*volume.State) {}, false, "stopped before the machine went down", false},
		{"3", killed, true, "running when the machine went down", false},
		{"3", func(*volume.State) {}, true, "stopped since", false},
		{"4", func(*volume.State) {}, true, "stopped before the machine went down again", false},
		{"5", func(st *volume.State) { st.Complete, st.Clean, st.Suspect = false, false, false }, false, "incomplete", false},
		{"5", killed, false, "killed again", false},
		{"5", killed, true, "running when the pool failed", true},
		{"5", func(st *volume.State) { st.Suspect = false }, false, "stopped before the pool failed", true},
		{"5", func(st *volume.State) { st.Complete, st.Clean = false, false }, false, "incomplete when the pool failed", true},
	} {
		if x.before != nil {
			put(x.before)
		}
		if x.failed {
			if err := Suspect(p); err != nil {
				t.Fatal(err)
			}
		}
		stop := serve(x.boot)
		if registered.Suspect != x.suspect || registered.BootID != x.boot || registered.Clean {
			t.Errorf("%s: registers with %+v", x.what, registered)
		}
		stop()
		if st, err := decodeState(r.State()); err != nil || !st.Clean || st.Suspect != x.suspect {
			t.Errorf("%s: stops with %+v, %v", x.what, st, err)
		}
	}
}
