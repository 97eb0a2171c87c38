package target_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/iscsi"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// TestSequentialThroughISCSI writes and reads a whole volume in large requests, all submitted at once, through a front
// end that admits few bytes at a time; now and then commands are aborted, or the connection is lost. The budget of bytes
// must not leak: at the end a request is let in that is larger than all of it, for which nothing else may be counted.
func TestSequentialThroughISCSI(t *testing.T) {
	for _, replicas := range []int{1, 2} {
		for _, budget := range []int{64 << 10, 3 << 20} {
			t.Run(fmt.Sprintf("replicas=%d,budget=%dK", replicas, budget>>10), func(t *testing.T) {
				sequential(newMemCluster(t, replicas), budget)
			})
		}
	}
}

func sequential(c *memCluster, budget int) {
	const iqn = "iqn.2016-09.com.openebs.cstor:v"
	srv, err := iscsi.NewServer(iscsi.Config{TargetName: iqn, Serial: "v", Device: c.target, MaxInFlight: budget})
	c.must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	go srv.Serve(l)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{Portal: l.Addr().String(), TargetName: iqn, Reconnect: true})
	c.must(err)
	defer s.Close()

	data := make([]byte, volumeSize)
	rand.NewChaCha8([32]byte{byte(c.seed)}).Read(data)
	rnd := rand.New(rand.NewPCG(c.seed, 2))
	each := func(size int64, f func(off int64) error) { // f for the whole volume at once
		var wg sync.WaitGroup
		for off := int64(0); off < volumeSize; off += size {
			wg.Go(func() {
				if err := f(off); err != nil {
					c.t.Errorf("request at %d: %v", off, err)
				}
			})
		}
		wg.Wait()
	}
	check := func(size int64) {
		each(size, func(off int64) error {
			got := make([]byte, size)
			if err := s.ReadAt(ctx, got, off); err != nil {
				return err
			}
			if !bytes.Equal(got, data[off:off+size]) {
				return fmt.Errorf("data differs")
			}
			return nil
		})
	}
	for _, size := range []int64{64 << 10, 1 << 20, 64 << 20} {
		each(size, func(off int64) error { return s.WriteAt(ctx, data[off:off+size], off, false) })
		c.must(s.Flush(ctx))
		check(size)
	}
	// The same while commands are aborted and the session is replaced: all of it is sent again by the initiator.
	stop := make(chan struct{})
	var disturb sync.WaitGroup
	disturb.Go(func() {
		for i := range 8 { // few enough that no command meets more unit attentions than the initiator bears
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rnd.IntN(40)) * time.Millisecond):
			}
			if i%2 == 1 {
				if other, err := initiator.Dial(ctx, initiator.Config{Portal: l.Addr().String(), TargetName: iqn}); err == nil {
					other.Close()
				}
				continue
			}
			s.Manage(5, nil).Wait(ctx) // LUN reset
		}
	})
	each(1<<20, func(off int64) error { return s.WriteAt(ctx, data[off:off+1<<20], off, false) })
	close(stop)
	disturb.Wait()
	check(1 << 20)
	c.must(s.WriteAt(ctx, data[:scsi.MaxTransfer], 0, true))
	check(scsi.MaxTransfer)
	for _, i := range srv.Sessions() {
		if i.InFlight != 0 {
			c.t.Errorf("%d commands are in flight at the end", i.InFlight)
		}
	}
}
