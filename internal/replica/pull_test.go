package replica

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// newTestServer returns a server over a pool in memory.
func newTestServer(t *testing.T) (*Server, *disk.Mem) {
	t.Helper()
	dev := disk.NewMem("mem", 256<<20)
	p, err := pool.Create(pool.Stripe(dev), pool.Config{Name: "p", Owner: "p"}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Pool: p, PullListen: l, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		s.shut()
		s.tasks.Wait()
		p.Close()
	})
	return s, dev
}

// newPull returns a pull for a new replica that nobody runs.
func newPull(t *testing.T, s *Server) *pull {
	t.Helper()
	r, err := s.cfg.Pool.CreateReplica("r", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAttached(s, Spec{Name: "r"}, r)
	if err != nil {
		t.Fatal(err)
	}
	return &pull{a: a, store: r}
}

func filled(b byte) []byte { return bytes.Repeat([]byte{b}, block.Size) }

// intruder lets an operation of the live stream come between the listing of a chunk and the merge of a piece of it.
type intruder struct {
	*pool.Replica
	between func()
}

func (i *intruder) ChunkVersions(number uint64, dst *[block.ChunkBlocks]block.Version) bool {
	any := i.Replica.ChunkVersions(number, dst)
	if f := i.between; f != nil {
		i.between = nil
		f()
	}
	return any
}

// TestMergeBesideLiveStream has the live stream, which is behind the source, touch a block of a chunk of which another
// piece is being merged, and ends the pull there: whatever version a block then has, it has that version's content.
func TestMergeBesideLiveStream(t *testing.T) {
	s, _ := newTestServer(t)
	p := newPull(t, s)
	a, r := p.a, p.a.r
	old, live := block.Version{Epoch: 1, N: 5}, block.Version{Epoch: 2, N: 10}
	const touched = 200
	data := filled(5)
	if err := r.Apply([]pool.Op{{Kind: pool.OpWrite, Block: touched, Count: 1, Version: old, Data: data}}); err != nil {
		t.Fatal(err)
	}
	// The source is at 2.12, has the discard 2.10 of the block, and in the first piece a block that is missing here. In
	// between there is one whose data did not come, so that the pull stops before it comes to the block.
	c := &pool.Chunk{Index: 0, Scan: block.Version{Epoch: 2, N: 12}}
	c.Versions[touched] = live
	for _, i := range []int{3, 130} {
		c.Versions[i], c.Stored[i], c.Sums[i] = block.Version{Epoch: 2, N: 9}, true, block.Sum(filled(9))
	}
	c.DataOf, c.Data = []uint16{3}, filled(9)
	applied := make(chan error, 1)
	p.store = &intruder{r, func() {
		go func() {
			a.applying.Lock()
			defer a.applying.Unlock()
			applied <- r.Apply([]pool.Op{{Kind: pool.OpDiscard, Block: touched, Count: 1, Version: live}})
		}()
		select { // it gets its turn either now or when the piece is merged
		case err := <-applied:
			applied <- err
		case <-time.After(50 * time.Millisecond):
		}
	}}
	if _, err := p.merge(c); !errors.Is(err, pool.ErrStaleChunk) {
		t.Fatalf("merge: %v", err)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	var have [block.ChunkBlocks]block.Version
	r.ChunkVersions(0, &have)
	got := make([]byte, block.Size)
	if err := r.Read(touched, got, nil); err != nil {
		t.Fatal(err)
	}
	want := map[block.Version][]byte{old: data, live: make([]byte, block.Size)}[have[touched]]
	if want == nil || !bytes.Equal(got, want) {
		t.Errorf("block has version %v and content %02x…", have[touched], got[0])
	}
}

// blind cannot list a chunk, once.
type blind struct {
	*pool.Replica
	listed int
}

func (b *blind) ChunkVersions(number uint64, dst *[block.ChunkBlocks]block.Version) bool {
	if b.listed++; b.listed == 2 {
		clear(dst[:])
		return false
	}
	return b.Replica.ChunkVersions(number, dst)
}

// TestMergeOfUnlistedChunk has the listing of a chunk fail in the middle of it: that must not look like an empty chunk,
// whose other blocks may go.
func TestMergeOfUnlistedChunk(t *testing.T) {
	s, _ := newTestServer(t)
	p := newPull(t, s)
	r := p.a.r
	v := block.Version{Epoch: 1, N: 5}
	if err := r.Apply([]pool.Op{{Kind: pool.OpWrite, Block: 300, Count: 1, Version: v, Data: filled(5)}}); err != nil {
		t.Fatal(err)
	}
	c := &pool.Chunk{Index: 0, Scan: block.Version{Epoch: 2, N: 12}}
	c.Versions[300], c.Stored[300], c.Sums[300] = v, true, block.Sum(filled(5)) // equal, so that no data comes
	for _, i := range []int{3, 70} {
		c.Versions[i], c.Stored[i], c.Sums[i] = block.Version{Epoch: 2, N: 9}, true, block.Sum(filled(9))
	}
	c.DataOf, c.Data = []uint16{3, 70}, append(filled(9), filled(9)...)
	p.store = &blind{Replica: r}
	if _, err := p.merge(c); err != nil {
		t.Errorf("merge: %v", err)
	}
	got := make([]byte, block.Size)
	for i, want := range map[uint64]byte{3: 9, 70: 9, 300: 5} {
		if err := r.Read(i, got, nil); err != nil || got[0] != want {
			t.Errorf("block %d holds %02x (%v), want %02x", i, got[0], err, want)
		}
	}
}
