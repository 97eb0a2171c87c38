package wire

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counter counts the references that are out.
type counter struct{ out atomic.Int64 }

func (c *counter) Release() { c.out.Add(-1) }

// TestOutboxConcurrent has several senders append and flush at once, each waiting for what it sent to arrive before it
// goes on, so that nobody else's flush helps a wake-up that got lost. The socket is small and the reader pauses, so that
// the writing goes back and forth between senders and the outbox's own goroutine. Then the connection is closed in the
// middle of it, and nothing may be left that is referred to.
func TestOutboxConcurrent(t *testing.T) {
	const (
		senders = 4
		rounds  = 400
		most    = 64 << 10
	)
	a, b := pipe(t)
	a.SetWriteBuffer(32 << 10)
	b.SetReadBuffer(32 << 10)
	o, err := NewOutbox(a, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var refs counter
	var arrived [senders]chan uint32
	for i := range arrived {
		arrived[i] = make(chan uint32, 16)
	}
	go func() {
		rnd := rand.New(rand.NewPCG(5, 6))
		var head [12]byte
		body := make([]byte, most)
		for {
			if _, err := io.ReadFull(b, head[:]); err != nil {
				return
			}
			if _, err := io.ReadFull(b, body[:binary.LittleEndian.Uint32(head[8:])]); err != nil {
				return
			}
			arrived[binary.LittleEndian.Uint32(head[:])] <- binary.LittleEndian.Uint32(head[4:])
			if rnd.IntN(50) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	frame := func(sender int, n uint32, size int) []byte {
		f := make([]byte, 12+size)
		binary.LittleEndian.PutUint32(f, uint32(sender))
		binary.LittleEndian.PutUint32(f[4:], n)
		binary.LittleEndian.PutUint32(f[8:], uint32(size))
		return f
	}
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(s)))
			next := uint32(0)
			for range rounds {
				first := next
				for range 1 + rnd.IntN(8) {
					size := rnd.IntN(200)
					if rnd.IntN(3) == 0 {
						size = rnd.IntN(most)
					}
					f := frame(s, next, size)
					next++
					if rnd.IntN(2) == 0 {
						o.AppendCopy(f)
						continue
					}
					refs.out.Add(1)
					o.AppendTwo(f[:12], f[12:], &refs)
				}
				o.Flush()
				for want := first; want < next; want++ {
					select {
					case got := <-arrived[s]:
						if got != want {
							t.Errorf("sender %d: frame %d came instead of %d", s, got, want)
							return
						}
					case <-time.After(20 * time.Second):
						t.Errorf("sender %d: frame %d does not come; %v", s, want, o.Err())
						return
					}
				}
			}
		})
	}
	wg.Wait()

	b.Close() // or rather: nobody reads any more
	for s := range senders {
		wg.Go(func() {
			for n := range uint32(200) {
				refs.out.Add(1)
				f := frame(s, n, most-1)
				o.AppendTwo(f[:12], f[12:], &refs)
				o.Flush()
				if s == 0 && n == 100 {
					o.Close()
				}
			}
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(10 * time.Second); refs.out.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d references are left", refs.out.Load())
		}
	}
}
