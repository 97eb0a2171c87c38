package harness

import (
	"errors"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Client makes single requests of a block.Device and waits for them. It repeats what was superseded, as an initiator does
// when it has logged in again, and knows every answer as soon as it is there. It may be used concurrently.
type Client struct{ Device block.Device }

var doneChannels = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// Complete implements block.Client.
func (Client) Complete(batch []*block.Request) {
	for _, r := range batch {
		r.Tag.(chan struct{}) <- struct{}{}
	}
}

func (c Client) do(r *block.Request) error {
	done := doneChannels.Get().(chan struct{})
	defer doneChannels.Put(done)
	r.Client, r.Tag = c, done
	for {
		if r.Op == block.Write {
			r.Buf = block.WrapBuffer(r.Data)
		}
		c.Device.Submit([]*block.Request{r})
		<-done
		if r.Told != nil {
			r.Told()
		}
		if !errors.Is(r.Err, block.ErrSuperseded) {
			return r.Err
		}
		time.Sleep(time.Millisecond) // it logs in again
	}
}

// Read fills b from off.
func (c Client) Read(b []byte, off int64) error {
	r := block.Request{Op: block.Read, Offset: off, Length: int64(len(b))}
	err := c.do(&r)
	if err == nil {
		copy(b, r.Data)
	}
	r.Buf.Release()
	return err
}

// Write writes a copy of b at off.
func (c Client) Write(b []byte, off int64, fua bool) error {
	data := append([]byte(nil), b...)
	return c.do(&block.Request{Op: block.Write, FUA: fua, Offset: off, Length: int64(len(b)), Data: data})
}

// Flush makes what was written stable.
func (c Client) Flush() error { return c.do(&block.Request{Op: block.Flush}) }

// Discard gives the whole blocks inside a range back.
func (c Client) Discard(off, n int64) error {
	return c.do(&block.Request{Op: block.Discard, Offset: off, Length: n})
}

// WriteZeroes makes a range read as zeroes.
func (c Client) WriteZeroes(off, n int64) error {
	return c.do(&block.Request{Op: block.WriteZeroes, Offset: off, Length: n})
}
