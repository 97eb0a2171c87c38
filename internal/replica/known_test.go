package replica

import (
	"log/slog"
	"net"
	"reflect"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// A pool that is opened again knows which replicas to serve: those that were served last, unless they were forgotten or
// are no members. States that say nothing of it, as there were once, are no replicas to serve.
func TestKnown(t *testing.T) {
	p, err := pool.Create(pool.Stripe(disk.NewMem("mem", 256<<20)), pool.Config{Name: "p", Owner: "p"}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	serve := func() *Server {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := New(Config{Pool: p, PullListen: l, Log: slog.New(slog.DiscardHandler)})
		t.Cleanup(func() { s.shut(); s.tasks.Wait() })
		return s
	}
	t.Cleanup(func() { p.Close() })
	s := serve()
	want := map[string]Spec{}
	for _, name := range []string{"member", "pending", "joiner", "forgotten", "old", "destroyed"} {
		spec := Spec{Name: name, ReplicaID: "id-" + name, Target: "127.0.0.1:1", Size: 8 << 20}
		r, err := p.CreateReplica(name, spec.Size)
		if err != nil {
			t.Fatal(err)
		}
		with := volume.List{Epoch: 2, Generation: 1, Members: []block.GUID{block.NewGUID(), r.GUID()}}
		st := volume.State{Committed: with, Complete: true}
		switch name {
		case "joiner":
			st.Committed.Members = with.Members[:1]
		case "pending":
			st.Committed.Members, st.Pending = with.Members[:1], &with
		}
		if err := putState(r, st); err != nil {
			t.Fatal(err)
		}
		want[name] = spec
		if name == "old" {
			continue
		}
		if err := s.Attach(spec); err != nil {
			t.Fatal(err)
		}
		if got, err := decodeState(r.State()); err != nil || !reflect.DeepEqual(got.Committed, st.Committed) || !got.Complete {
			t.Errorf("%s: the state became %+v, %v", name, got, err)
		}
	}
	s.Forget("forgotten")
	s.Detach("member")
	if err := s.Destroy("destroyed"); err != nil {
		t.Fatal(err)
	}
	s.shut()
	s.tasks.Wait()
	if got := serve().Known(); !reflect.DeepEqual(got, []Spec{want["member"], want["pending"]}) {
		t.Errorf("known: %+v", got)
	}
}
