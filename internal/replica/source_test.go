package replica

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// newSource returns a replica that is complete and admitted under the promise, has applied what is past and then one write,
// and is served.
func newSource(t *testing.T, s *Server, promise volume.Promise, past ...pool.Op) *attached {
	t.Helper()
	a := newPull(t, s).a
	if err := a.r.Apply(past); err != nil {
		t.Fatal(err)
	}
	m, guid := a.member, a.r.GUID()
	m.Connect(1)
	m.Step(s.now(), 1, volume.Claim{Promise: promise})
	m.Step(s.now(), 1, volume.Found{List: volume.List{Epoch: promise.Epoch, Generation: 1, Members: []block.GUID{guid}}})
	open := block.Version{Epoch: promise.Epoch, N: 1}
	rd := m.Open(1, &volume.Op{Kind: volume.OpOpen, Version: open, Open: &volume.EpochStart{Epoch: open.Epoch, First: open.N, Nonce: promise.Nonce}})
	if rd.State == nil {
		t.Fatal(rd.Close)
	}
	v := block.Version{Epoch: promise.Epoch, N: 2}
	err := a.r.SetState(nil, open)
	if err == nil {
		err = a.r.Apply([]pool.Op{{Kind: pool.OpWrite, Block: 1, Count: 1, Version: v, Data: filled(7)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	m.Applied(v)
	s.mu.Lock()
	s.replicas["r"] = a
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.Serve(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	return a
}

// TestSourceLeavesWhileReading has a source be claimed by another target while it reads a chunk: from then on it may
// become incomplete, and what it has read may be half of something.
func TestSourceLeavesWhileReading(t *testing.T) {
	s, dev := newTestServer(t)
	promise := volume.Promise{Epoch: 1, Nonce: 1}
	a := newSource(t, s, promise)
	p, err := dialPeer(context.Background(), s.cfg.PullAddr, wire.Hello{Replica: "r", Promise: promise, From: block.Version{Epoch: 1, N: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var none [block.ChunkBlocks]block.Version
	var c pool.Chunk
	ask := func() error {
		p.ask(0, block.Version{}, &none)
		return p.chunk(0, &c)
	}
	if err := ask(); err != nil || len(c.DataOf) != 1 {
		t.Fatalf("%d blocks, %v", len(c.DataOf), err)
	}
	waits, resume := dev.Hang()
	go func() {
		defer resume()
		select {
		case <-waits:
		case <-t.Context().Done():
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.member.Step(s.now(), 1, volume.Claim{Promise: volume.Promise{Epoch: 2, Nonce: 2}})
	}()
	var remote *wire.RemoteError
	if err := ask(); !errors.As(err, &remote) {
		t.Errorf("a chunk came from a source that had left: %v", err)
	}
}

// TestAskerLeavesTheQueue has a peer ask for a stage while others have all slots, and leave: the source forgets what it asked for.
func TestAskerLeavesTheQueue(t *testing.T) {
	s, _ := newTestServer(t)
	promise := volume.Promise{Epoch: 1, Nonce: 1}
	newSource(t, s, promise)
	for range cap(s.cuts) {
		s.cuts <- struct{}{}
	}
	here, there := net.Pipe()
	left := make(chan struct{})
	go func() { s.source(there); close(left) }()
	hello, err := wire.AppendHello(nil, wire.Hello{Replica: "r", Promise: promise, From: block.Version{Epoch: 1, N: 2}})
	if err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(here)
	defer r.Close()
	for _, b := range [][]byte{hello, wire.AppendStage(nil, block.Version{}, nil)} {
		if _, err := here.Write(b); err != nil {
			t.Fatal(err)
		}
		f, ok, err := r.Next()
		for ; err == nil && !ok; f, ok, err = r.Next() {
			err = r.Fill()
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == wire.TypeWorking { // it waits
			here.Close()
		}
	}
	<-left
}
