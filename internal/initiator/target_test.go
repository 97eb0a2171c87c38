package initiator_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/iscsi"
	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

var testUnitReady = make([]byte, 6)

func read10(lba, blocks byte) []byte  { return []byte{0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0} }
func write10(lba, blocks byte) []byte { return []byte{0x2a, 0, 0, 0, 0, lba, 0, 0, blocks, 0} }

func TestDiscover(t *testing.T) {
	disk := memdisk.New(1 << 20)
	p := serve(t, disk, func(c *iscsi.Config) {
		c.Portal = "192.0.2.7:3260"
		c.Ready = func() error { return errors.New("no quorum") } // discovery does not need the volume
	})
	got, err := initiator.Discover(testContext(t), initiator.Config{Portal: p.addr})
	if err != nil || len(got) != 1 || got[0].Name != targetName || len(got[0].Portals) != 1 || got[0].Portals[0] != "192.0.2.7:3260,1" {
		t.Errorf("discovered %+v, %v", got, err)
	}
}

func TestLoginRefused(t *testing.T) {
	notReady := errors.New("no quorum")
	disk := memdisk.New(1 << 20)
	p := serve(t, disk, func(c *iscsi.Config) { c.Ready = func() error { return notReady } })
	refused := func(cfg initiator.Config, class, detail uint8) {
		t.Helper()
		_, err := initiator.Dial(testContext(t), cfg)
		var le *initiator.LoginError
		if !errors.As(err, &le) || le.Class != class || le.Detail != detail {
			t.Errorf("%v, want class %d detail %d", err, class, detail)
		}
	}
	refused(p.config(), 3, 1)
	notReady = nil
	other := p.config()
	other.TargetName += "x"
	refused(other, 2, 3)
	dial(t, p.config())
	second := p.config()
	second.InitiatorName = "iqn.2024-01.org.example:other"
	refused(second, 3, 1)
	if s := p.Sessions(); len(s) != 1 || s[0].Initiator == second.InitiatorName {
		t.Errorf("sessions: %+v", s)
	}
}

// TestReplace logs the same initiator in twice: the second session replaces the first, whose connection is closed.
func TestReplace(t *testing.T) {
	disk := memdisk.NewAsync(1 << 20)
	defer disk.Close()
	p := serve(t, disk, nil)
	ctx := testContext(t)
	a := dial(t, p.config())
	disk.Hold()
	call := a.Begin(write10(0, 1), make([]byte, 512), 0)
	until(t, "write at the device", func() bool { return disk.Waiting() == 1 })
	b := dial(t, p.config()) // does not wait for the device
	if _, err := call.Wait(ctx); !errors.Is(err, initiator.ErrDisconnected) {
		t.Errorf("command of the old session: %v", err)
	}
	disk.Resume()
	if err := b.Flush(ctx); err != nil {
		t.Error(err)
	}
	if s := p.Sessions(); len(s) != 1 {
		t.Errorf("sessions: %+v", s)
	}
}

// silent logs in and then never reads or writes again.
func silent(t *testing.T, p *portal, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h := pdu.New(pdu.LoginReq, pdu.Transit|pdu.StageOperational<<2|pdu.StageFull)
	h.SetImmediate()
	h.SetSessionID([6]byte{0x80, 1}, 0)
	err = pdu.WriteOne(c, &h, pdu.AppendText(nil, pdu.Pair{Key: "InitiatorName", Value: name},
		pdu.Pair{Key: "TargetName", Value: targetName}, pdu.Pair{Key: "SessionType", Value: "Normal"}))
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err := pdu.ReadOne(c, 8192); err != nil || r[36] != 0 || !r.Has(pdu.Transit) {
		t.Fatalf("login: %v, status %d/%d", err, r[36], r[37])
	}
	return c
}

// TestDeadInitiator makes room for another initiator as soon as the first does not answer a probe, and drops a silent
// one by itself.
func TestDeadInitiator(t *testing.T) {
	disk := memdisk.New(1 << 20)
	p := serve(t, disk, func(c *iscsi.Config) { c.ProbeTimeout = 20 * time.Millisecond })
	silent(t, p, "iqn.2024-01.org.example:dead")
	until(t, "second initiator gets in", func() bool {
		s, err := initiator.Dial(testContext(t), p.config())
		if err == nil {
			s.Close()
		}
		return err == nil
	})
	q := serve(t, disk, func(c *iscsi.Config) {
		c.NopInterval, c.NopTimeout = 10*time.Millisecond, 10*time.Millisecond
	})
	silent(t, q, "iqn.2024-01.org.example:dead")
	until(t, "silent session is dropped", func() bool { return len(q.Sessions()) == 0 })
	s := dial(t, q.config()) // one that answers stays
	before := time.Now()
	until(t, "several pings", func() bool { return time.Since(before) > 100*time.Millisecond })
	if len(q.Sessions()) != 1 || len(s.Pauses()) != 0 {
		t.Error("a session that answers pings was dropped")
	}
}

func TestTaskManagement(t *testing.T) {
	disk := memdisk.NewAsync(1 << 20)
	defer disk.Close()
	s := dial(t, serve(t, disk, nil).config())
	ctx := testContext(t)
	manage := func(function byte, about *initiator.Call, want byte) {
		t.Helper()
		if r, err := s.Manage(function, about).Wait(ctx); err != nil || r.Response != want {
			t.Errorf("function %d: response %d, %v; want %d", function, r.Response, err, want)
		}
	}
	done := s.Begin(testUnitReady, nil, 0)
	done.Wait(ctx)
	manage(pdu.AbortTask, done, pdu.NoSuchTask)
	manage(pdu.TaskReassign, nil, pdu.NoReassign)
	manage(pdu.ClearACA, nil, pdu.FunctionNotSupported)

	for _, function := range []byte{pdu.AbortTask, pdu.AbortTaskSet, pdu.ClearTaskSet, pdu.LUNReset, pdu.TargetWarmReset} {
		disk.Hold()
		call := s.Begin(read10(0, 8), nil, 4096)
		until(t, "read at the device", func() bool { return disk.Waiting() == 1 })
		about := call
		if function != pdu.AbortTask {
			about = nil
		}
		answer := s.Manage(function, about)
		if err := s.Ping(ctx); err != nil { // the session goes on meanwhile
			t.Error(err)
		}
		now, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := answer.Wait(now); err == nil {
			t.Errorf("function %d was answered while its task was at the device", function)
		}
		disk.Resume()
		if r, err := answer.Wait(ctx); err != nil || r.Response != pdu.FunctionComplete {
			t.Errorf("function %d: response %d, %v", function, r.Response, err)
		}
		if _, err := call.Wait(ctx); !errors.Is(err, initiator.ErrAborted) {
			t.Errorf("function %d: aborted command: %v", function, err)
		}
		r, err := s.Begin(testUnitReady, nil, 0).Wait(ctx)
		if err != nil || function >= pdu.LUNReset != r.Sense.Is(scsi.DeviceReset) {
			t.Errorf("function %d: then %v %v", function, r.Sense, err)
		}
	}
	if err := s.Flush(ctx); err != nil {
		t.Error(err)
	}
}

func TestAttentionsAndErrors(t *testing.T) {
	disk := memdisk.New(1 << 20)
	var fault atomic.Pointer[error]
	disk.Fault = func(*block.Request) error {
		if e := fault.Load(); e != nil {
			return *e
		}
		return nil
	}
	p := serve(t, disk, nil)
	s := dial(t, p.config())
	ctx := testContext(t)
	disk.Grow(2 << 20)
	p.CapacityChanged()
	r, err := s.Begin(testUnitReady, nil, 0).Wait(ctx)
	if err != nil || !r.Sense.Is(scsi.CapacityDataChanged) {
		t.Errorf("after a change of size: %v, %v", r.Sense, err)
	}
	p.CapacityChanged()
	if err := s.Flush(ctx); err != nil {
		t.Errorf("a unit attention fails a request: %v", err)
	}
	until(t, "new size is known", func() bool { return s.Size() == 2<<20 })

	for _, want := range []error{block.ErrNoSpace, block.ErrMedium, block.ErrRetry} {
		fault.Store(&want)
		if err := s.WriteAt(ctx, make([]byte, 4096), 0, false); !errors.Is(err, want) {
			t.Errorf("write: %v, want %v", err, want)
		}
		if err := s.ReadAt(ctx, make([]byte, 4096), 0); !errors.Is(err, want) {
			t.Errorf("read: %v, want %v", err, want)
		}
	}
	fault.Store(nil)
	if err := s.WriteAt(ctx, make([]byte, 512), 2<<20, false); err == nil {
		t.Error("write beyond the end succeeded")
	}
}

// TestResidual checks counts when a CDB and the expected length differ.
func TestResidual(t *testing.T) {
	s := dial(t, serve(t, memdisk.New(1<<20), nil).config())
	ctx := testContext(t)
	for _, c := range []struct {
		cdb         []byte
		out         int
		in          int
		got         int
		over, under int
	}{
		{read10(0, 1), 0, 512, 512, 0, 0},
		{read10(0, 1), 0, 10000, 512, 0, 9488},
		{read10(0, 2), 0, 512, 512, 512, 0},
		{read10(0, 1), 0, 0, 0, 512, 0},
		{write10(0, 1), 10000, 0, 0, 0, 9488},
		{write10(0, 2), 512, 0, 0, 512, 0},
		{write10(0, 1), 200, 0, 0, 312, 0},
	} {
		r, err := s.Command(ctx, c.cdb, make([]byte, c.out), c.in)
		if err != nil || r.Status != scsi.Good || len(r.Data) != c.got || r.Residual != c.over+c.under ||
			r.Overflow != (c.over > 0) || r.Underflow != (c.under > 0) {
			t.Errorf("cdb %x out %d in %d: %+v, %v", c.cdb, c.out, c.in, r, err)
		}
	}
}

// TestFlags checks what reaches the device.
func TestFlags(t *testing.T) {
	disk := memdisk.New(64 << 20)
	s := dial(t, serve(t, disk, nil).config())
	ctx := testContext(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(s.WriteAt(ctx, bytes.Repeat([]byte{7}, 8192), 4096, true))
	must(s.WriteAt(ctx, make([]byte, 4096), 0, false))
	must(s.Discard(ctx, 4096+512, 4096)) // no whole block inside
	must(s.WriteZeroes(ctx, 4096, 512))
	must(s.WriteZeroes(ctx, 1<<20, 50<<20)) // two commands
	must(s.Flush(ctx))
	if got, want := disk.Stats(), (memdisk.Stats{Writes: 2, FUA: 1, Flushes: 1, Discards: 1, Zeroes: 3}); got != want {
		t.Errorf("device saw %+v, want %+v", got, want)
	}
	p := make([]byte, 8192)
	must(s.ReadAt(ctx, p, 4096))
	if !bytes.Equal(p[:512], make([]byte, 512)) || !bytes.Equal(p[512:], bytes.Repeat([]byte{7}, 8192-512)) {
		t.Error("a discard or write of zeroes changed more than its whole blocks")
	}
	same := []byte{0x41, 0, 0, 0, 16, 0, 0, 0x10, 0, 0} // WRITE SAME of 4096 blocks
	if r, err := s.Command(ctx, same, bytes.Repeat([]byte{0xa5}, 512), 0); err != nil || r.Status != scsi.Good {
		t.Errorf("WRITE SAME: %+v, %v", r, err)
	}
	must(s.ReadAt(ctx, p, 2<<20))
	if !bytes.Equal(p, bytes.Repeat([]byte{0xa5}, len(p))) {
		t.Error("WRITE SAME wrote something else")
	}
	verify := []byte{0x2f, 2, 0, 0, 16, 0, 0, 0, 1, 0}
	for _, c := range []struct {
		data byte
		want scsi.Sense
	}{{0xa5, scsi.Sense{}}, {0xa6, scsi.Miscompare}} {
		if r, err := s.Command(ctx, verify, bytes.Repeat([]byte{c.data}, 512), 0); err != nil || !r.Sense.Is(c.want) {
			t.Errorf("VERIFY of %#x: %+v, %v", c.data, r, err)
		}
	}
}

// TestStalledInitiator has an initiator ask for more than the socket takes and read nothing: the device's goroutine
// must not be held up, only the initiator's next commands once 16 MiB of answers wait. It gets all answers when it reads.
func TestStalledInitiator(t *testing.T) {
	disk := memdisk.NewAsync(64 << 20)
	defer disk.Close()
	p := serve(t, disk, func(c *iscsi.Config) { c.MaxInFlight = 1 << 30 })
	c := silent(t, p, "iqn.2024-01.org.example:stalled")
	c.(*net.TCPConn).SetReadBuffer(64 << 10)
	for i := range uint32(65) { // the first brings the unit attention
		h := pdu.New(pdu.Command, pdu.Final|pdu.ReadBit)
		h.SetITT(i)
		h.SetExpected(1 << 20)
		h.SetCmdSN(i)
		copy(h.CDB(), []byte{0x28, 0, 0, 0, 0, 0, 0, 8, 0, 0})
		if err := pdu.WriteOne(c, &h, nil); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "more is executed than fits into the socket", func() bool { return disk.Stats().Reads > 16 })
	other := make(chanClient)
	disk.Submit([]*block.Request{{Op: block.Flush, Client: other}})
	select {
	case <-other:
	case <-testContext(t).Done():
		t.Fatal("the device is held up")
	}
	got := 0
	for got < 64 {
		h, data, err := pdu.ReadOne(c, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && h.Opcode() == pdu.DataIn && h.Has(pdu.StatusBit) {
			got++
		}
	}
}

// chanClient tells of each batch of completions.
type chanClient chan struct{}

func (c chanClient) Complete([]*block.Request) { c <- struct{}{} }

// TestShutdown answers what is in flight before the session is dropped.
func TestShutdown(t *testing.T) {
	disk := memdisk.NewAsync(1 << 20)
	defer disk.Close()
	p := serve(t, disk, nil)
	s := dial(t, p.config())
	ctx := testContext(t)
	disk.Hold()
	call := s.Begin(read10(0, 1), nil, 512)
	until(t, "read at the device", func() bool { return disk.Waiting() == 1 })
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	down := make(chan error)
	go func() { down <- p.Shutdown(ctx) }()
	if _, err := call.Wait(short); err == nil {
		t.Error("answered while held")
	}
	disk.Resume()
	if r, err := call.Wait(ctx); err != nil || r.Status != scsi.Good {
		t.Errorf("command in flight: %+v, %v", r, err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}
