package replica

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// few makes random operations in the first chunks, none of much.
func few(rng *rand.Rand, epoch, first uint64, count int) (ops []pool.Op) {
	for n := first; len(ops) < count; n++ {
		op := somewhere(rng, block.Version{Epoch: epoch, N: n})
		op.Count = min(op.Count, 8)
		op.Data = op.Data[:min(len(op.Data), 8*block.Size)]
		ops = append(ops, op)
	}
	return ops
}

// state is all that a replica shows, and what of.
func state(t *testing.T, r *pool.Replica) string {
	t.Helper()
	s := fmt.Sprintf("%v", r.Applied())
	content := make([]byte, 3*block.ChunkBlocks*block.Size)
	if err := r.Read(0, content, nil); err != nil {
		t.Fatal(err)
	}
	var v [block.ChunkBlocks]block.Version
	for i := range uint64(3) {
		if err := r.Newer(i, block.Version{}, &v); err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprint(" ", v)
	}
	return fmt.Sprintf("%s %08x", s, block.Sum(content))
}

// TestStage has a replica with a tail of its own become what a source is that is written meanwhile: exactly what that was
// at one moment.
func TestStage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const past, tail = 300, 20
	apply := func(r *pool.Replica, ops ...pool.Op) {
		for i := range ops {
			if err := r.Apply(ops[i : i+1]); err != nil {
				t.Error(err)
				return
			}
		}
	}
	common := few(rng, 1, 1, past)
	theirs, _ := newTestServer(t)
	promise := volume.Promise{Epoch: 2, Nonce: 1}
	source := newSource(t, theirs, promise, common...)
	ahead := few(rng, 2, 3, tail)
	apply(source.r, ahead...)
	source.member.Applied(source.r.Applied())

	ours, _ := newTestServer(t)
	accept(t, attachTo(t, ours))
	a := ours.find("r")
	apply(a.r, common...)
	apply(a.r, few(rng, 1, past+1, tail)...)

	live := few(rng, 2, source.r.Applied().N+1, 3000)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := range live {
			select {
			case <-stop:
				return
			default:
			}
			source.mu.Lock()
			apply(source.r, live[i])
			source.member.Applied(live[i].Version)
			source.mu.Unlock()
		}
	}()
	base, from := block.Version{Epoch: 1, N: past}, block.Version{Epoch: 2, N: tail + 2}
	p := &pull{a: a, s: a.session, what: volume.Pull{
		Source: volume.Peer{Name: "r", GUID: source.r.GUID(), Addr: theirs.cfg.PullAddr}, Promise: promise, From: from, Base: base, Stage: true,
	}}
	for range 5 {
		blocks, scan, err := p.fetchStage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.r.ApplyStage(blocks, []byte("{}"), scan); err != nil {
			t.Fatal(err)
		}
		then, _ := newTestServer(t)
		like := newSource(t, then, promise, common...)
		apply(like.r, ahead...)
		if n := scan.N - from.N; n > 0 {
			apply(like.r, live[:n]...)
		}
		if is, want := state(t, a.r), state(t, like.r); is != want {
			t.Fatalf("as of %v the replica is\n%s, the source was\n%s", scan, is, want)
		}
		p.what.Base = scan
	}
	close(stop)
	<-done

	// More than is sent at once, and a source that is of another target now.
	for n := source.r.Applied().N + 1; ; n++ {
		apply(source.r, pool.Op{Kind: pool.OpWrite, Block: n % 60 * 200, Count: 200, Version: block.Version{Epoch: 2, N: n}, Data: bytes.Repeat(filled(1), 200)})
		_, _, err := p.fetchStage(t.Context())
		var remote *wire.RemoteError
		if errors.As(err, &remote) && remote.Code == wire.CodeTooMuch {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	source.mu.Lock()
	source.member.Connect(2)
	source.member.Step(theirs.now()+volume.LeaseTime, 2, volume.Claim{Promise: volume.Promise{Epoch: 3, Nonce: 2}})
	source.mu.Unlock()
	if _, _, err := p.fetchStage(t.Context()); err == nil {
		t.Error("a source serves a target that it has left")
	}
}

// TestStagedIsStable has the device fail to make stable what a replica has become: then that is not said.
func TestStagedIsStable(t *testing.T) {
	for _, fails := range []bool{false, true} {
		theirs, _ := newTestServer(t)
		promise := volume.Promise{Epoch: 2, Nonce: 1}
		source := newSource(t, theirs, promise)
		ours, dev := newTestServer(t)
		f := accept(t, attachTo(t, ours))
		guid := f.report.GUID
		f.send(volume.Claim{Promise: promise})
		f.send(volume.Found{List: volume.List{Epoch: 1, Generation: 1, Members: []block.GUID{guid}}})
		var m volume.Message
		for _, founded := m.(volume.Founded); !founded; _, founded = m.(volume.Founded) {
			m = f.next()
		}
		dev.Inject(disk.Faults{FailFlush: fails})
		f.send(volume.Stage{
			Attempt: 1, Source: volume.Peer{Name: "r", GUID: source.r.GUID(), Addr: theirs.cfg.PullAddr},
			History: source.member.Report().State.History, From: block.Version{Epoch: 2, N: 2},
		})
		for m = f.next(); ; m = f.next() {
			if _, ok := m.(volume.Progress); !ok {
				break
			}
		}
		switch m := m.(type) {
		case volume.Staged:
			if fails || m.Last != source.r.Applied() {
				t.Errorf("%+v, with a device that fails: %v", m, fails)
			}
		case volume.Failed:
			if !fails {
				t.Error(m)
			}
		default:
			t.Errorf("%#v", m)
		}
	}
}
