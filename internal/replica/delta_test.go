package replica

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// somewhere makes a random operation in the first chunks: writes, discards, sometimes of much.
func somewhere(rng *rand.Rand, v block.Version) pool.Op {
	const blocks = 3 * block.ChunkBlocks
	op := pool.Op{Kind: pool.OpWrite, Block: rng.Uint64N(blocks), Count: 1, Version: v}
	if rng.IntN(20) == 0 {
		op.Count = uint32(1 + rng.IntN(300))
	}
	if op.Count = min(op.Count, uint32(blocks-op.Block)); rng.IntN(3) == 0 {
		op.Kind = pool.OpDiscard
		return op
	}
	for i := range op.Count {
		op.Data = append(op.Data, filled(byte(v.N+uint64(i)))...)
	}
	return op
}

// TestDelta brings back a replica that has a tail of its own, from a source that has gone on. What the two agree about is not
// listed. The volume is written meanwhile, and the source and the replica's stream get on with that at their own pace; in the
// end the two agree about everything.
func TestDelta(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	operations := func(epoch, first uint64, count int) (ops []pool.Op) {
		for n := first; len(ops) < count; n++ {
			ops = append(ops, somewhere(rng, block.Version{Epoch: epoch, N: n}))
		}
		return ops
	}
	const past, tail = 2000, 60
	apply := func(r *pool.Replica, ops []pool.Op) {
		for i := range ops {
			if err := r.Apply(ops[i : i+1]); err != nil {
				t.Error(err)
				return
			}
		}
	}
	common := operations(1, 1, past)
	theirs, _ := newTestServer(t)
	promise := volume.Promise{Epoch: 2, Nonce: 1}
	source := newSource(t, theirs, promise, common...)
	apply(source.r, operations(2, 3, tail))
	source.member.Applied(source.r.Applied())

	ours, _ := newTestServer(t)
	accept(t, attachTo(t, ours))
	a := ours.find("r")
	apply(a.r, common)
	apply(a.r, operations(1, past+1, tail))

	list := func(r *pool.Replica, chunk uint64, base block.Version, dst *[block.ChunkBlocks]block.Version) {
		t.Helper()
		if err := r.Newer(chunk, base, dst); err != nil {
			t.Fatal(err)
		}
	}
	base, from := block.Version{Epoch: 1, N: past}, source.r.Applied()
	var here, there, newer [block.ChunkBlocks]block.Version
	hello := wire.Hello{Replica: "r", Promise: promise, From: from}
	src, err := dialPeer(t.Context(), theirs.cfg.PullAddr, hello)
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	agreed := 0
	for i := range uint64(3) {
		list(a.r, i, block.Version{}, &here)
		list(source.r, i, block.Version{}, &there)
		list(a.r, i, base, &newer)
		var c pool.Chunk
		src.ask(i, base, &newer)
		if err := src.chunk(i, &c); err != nil {
			t.Fatal(err)
		}
		for b := range here {
			agree := !base.Less(here[b]) && !base.Less(there[b])
			if agree && here[b] != there[b] || c.Unlisted[b] != agree || !agree && c.Versions[b] != there[b] {
				t.Fatalf("block %d: %v here, %v there, listed as %v (%t)", b, here[b], there[b], c.Versions[b], !c.Unlisted[b])
			}
			if agree {
				agreed++
			}
		}
	}
	if agreed == 0 || agreed == 3*block.ChunkBlocks {
		t.Errorf("the replicas agree about %d blocks", agreed)
	}

	live := operations(2, from.N+1, 1000)
	var streams sync.WaitGroup
	for _, r := range []*pool.Replica{source.r, a.r} {
		streams.Go(func() { apply(r, live) })
	}
	p := &pull{a: a, s: a.session, pace: ours.paces.join(), what: volume.Pull{
		Source: volume.Peer{Name: "r", GUID: source.r.GUID(), Addr: theirs.cfg.PullAddr}, Promise: promise, From: from, Base: base,
	}}
	if err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	streams.Wait()
	for i := range uint64(3) {
		list(a.r, i, block.Version{}, &here)
		list(source.r, i, block.Version{}, &there)
		for b := range here {
			if here[b] != there[b] {
				t.Fatalf("block %d of chunk %d has version %v, %v at the source", b, i, here[b], there[b])
			}
		}
	}
	x, y := make([]byte, 3*block.ChunkBlocks*block.Size), make([]byte, 3*block.ChunkBlocks*block.Size)
	if err := errors.Join(a.r.Read(0, x, nil), source.r.Read(0, y, nil)); err != nil || !bytes.Equal(x, y) {
		t.Errorf("contents differ, %v", err)
	}
}

// TestAmbiguous has a replica rebuilt that has operations of another target with the versions of the source's: what the source
// has is fetched, and what only the replica has is removed.
func TestAmbiguous(t *testing.T) {
	write := func(b uint64, n uint64, with byte) pool.Op {
		return pool.Op{Kind: pool.OpWrite, Block: b, Count: 1, Version: block.Version{Epoch: 2, N: n}, Data: filled(with)}
	}
	common := []pool.Op{{Kind: pool.OpWrite, Block: 9, Count: 1, Version: block.Version{Epoch: 1, N: 1}, Data: filled(1)}}
	theirs, _ := newTestServer(t)
	promise := volume.Promise{Epoch: 2, Nonce: 1}
	source := newSource(t, theirs, promise, common...) // 2.2 is a write to block 1
	ours, _ := newTestServer(t)
	accept(t, attachTo(t, ours))
	a := ours.find("r")
	gone := pool.Op{Kind: pool.OpDiscard, Block: 3, Count: 1, Version: block.Version{Epoch: 2, N: 3}}
	if err := errors.Join(source.r.Apply([]pool.Op{gone, write(4, 4, 2)}), a.r.Apply(common), a.r.Apply([]pool.Op{write(1, 2, 3), write(3, 3, 4), write(6, 4, 5)})); err != nil {
		t.Fatal(err)
	}
	source.member.Applied(source.r.Applied())
	p := &pull{a: a, s: a.session, pace: ours.paces.join(), what: volume.Pull{
		Source:  volume.Peer{Name: "r", GUID: source.r.GUID(), Addr: theirs.cfg.PullAddr},
		Promise: promise, From: source.r.Applied(), Base: block.Version{Epoch: 1, N: 1}, Ambiguous: true,
	}}
	if err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	x, y := make([]byte, 10*block.Size), make([]byte, 10*block.Size)
	if err := errors.Join(a.r.Read(0, x, nil), source.r.Read(0, y, nil)); err != nil || !bytes.Equal(x, y) {
		t.Errorf("contents differ, %v", err)
	}
}

// TestHungSource has a source take a request and never answer: that is noticed in a while, and said; and one whose device hangs
// says that it is still there.
func TestHungSource(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = dialPeer(t.Context(), l.Addr().String(), wire.Hello{Replica: "r"})
	if err == nil || !strings.Contains(err.Error(), "owes an answer") {
		t.Errorf("a source that does not answer: %v", err)
	}

	s, dev := newTestServer(t)
	promise := volume.Promise{Epoch: 1, Nonce: 1}
	newSource(t, s, promise)
	p, err := dialPeer(t.Context(), s.cfg.PullAddr, wire.Hello{Replica: "r", Promise: promise, From: block.Version{Epoch: 1, N: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	_, resume := dev.Hang()
	defer resume()
	time.AfterFunc(peerSilent+2*sourceSigns, resume)
	var none [block.ChunkBlocks]block.Version
	var c pool.Chunk
	p.ask(0, block.Version{}, &none)
	if err := p.chunk(0, &c); err != nil || len(c.DataOf) != 1 {
		t.Errorf("%d blocks, %v", len(c.DataOf), err)
	}
}
