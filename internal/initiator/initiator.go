// Package initiator is an iSCSI initiator in user space (RFC 7143): it makes LUN 0 of a target a block.Device, for
// tests, benchmarks and the demonstration. Like the Linux initiator it can live through the loss of its connection or
// of the target: it logs in again, as long as it takes up to a limit, and sends the outstanding commands again in
// their order, so that a request sees at most a pause.
//
// One goroutine per session reads; commands are sent by whoever submits them, many with one system call.
package initiator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// Config says where to log in and how. Only Portal and TargetName must be given.
type Config struct {
	Portal        string // host:port
	TargetName    string
	InitiatorName string  // default "iqn.2024-01.io.github.cstor-go:initiator"
	ISID          [6]byte // default: random, the same for the life of the Session

	HeaderDigest, DataDigest bool // CRC32C
	InitialR2T               bool // forbid unsolicited Data-Out
	NoImmediateData          bool
	FirstBurst, MaxBurst     int // bytes; default 256 KiB and 1 MiB
	MaxReceive               int // MaxRecvDataSegmentLength, bytes; default and at most 256 KiB
	MaxR2T                   int // default 4

	Depth int // commands in flight; default and at most 1024; the target's window also limits it

	// Reconnect makes the session log in again when the connection is lost, for up to ReplacementTimeout (default
	// 120 s), before its commands fail.
	Reconnect          bool
	ReplacementTimeout time.Duration
	RetryInterval      time.Duration // between attempts to log in; default 100 ms
	// NopInterval is how long nothing may come before the target is pinged, NopTimeout how long after that before the
	// connection is given up; default 2 s each. A negative interval turns pings off.
	NopInterval, NopTimeout time.Duration
	LoginTimeout            time.Duration // for one attempt; default 10 s
	Log                     *slog.Logger  // default: discards
}

func (c *Config) setDefaults() {
	num := func(n *int, v, limit int) {
		if *n <= 0 || *n > limit {
			*n = v
		}
	}
	dur := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num(&c.FirstBurst, 256<<10, 1<<24-1)
	num(&c.MaxBurst, 1<<20, 1<<24-1)
	num(&c.MaxReceive, 256<<10, 256<<10)
	num(&c.MaxR2T, 4, 65535)
	num(&c.Depth, maxDepth, maxDepth)
	dur(&c.ReplacementTimeout, 120*time.Second)
	dur(&c.RetryInterval, 100*time.Millisecond)
	dur(&c.NopInterval, 2*time.Second)
	dur(&c.NopTimeout, 2*time.Second)
	dur(&c.LoginTimeout, 10*time.Second)
	if c.InitiatorName == "" {
		c.InitiatorName = "iqn.2024-01.io.github.cstor-go:initiator"
	}
	if c.ISID == ([6]byte{}) {
		rand.Read(c.ISID[:])
		c.ISID[0] = 0x80 // random format (RFC 7143 11.12.5)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

const maxDepth = 1024

// ErrClosed is what commands fail with after Close.
var ErrClosed = errors.New("iSCSI session closed")

// ErrAborted is what a command fails with that was aborted by task management.
var ErrAborted = errors.New("command aborted")

// ErrDisconnected is what commands fail with when the connection is lost for good.
var ErrDisconnected = errors.New("iSCSI connection lost")

// Session is a session with a target. It implements block.Device. Its methods may be called concurrently.
type Session struct {
	cfg      Config
	size     atomic.Int64
	transfer int64 // most bytes in one command
	unmap    int64 // most bytes in one UNMAP
	same     int64 // most bytes in one WRITE SAME

	mu      sync.Mutex
	link    *link      // nil while there is no connection
	slots   []*command // by the low bits of their task tag; nil: unused
	idle    []uint16   // unused slots
	queue   []*command // commands to be sent, in order
	orders  uint64     // commands so far
	free    []*command
	err     error // why the session is over
	closing bool
	pauses  []Pause

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the session is over
}

// Pause is a time without connection.
type Pause struct {
	From, To time.Time
	Cause    error
}

// Dial logs in and finds out the size and limits of LUN 0.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	cfg.setDefaults()
	l, err := login(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	s := &Session{cfg: cfg, link: l, slots: make([]*command, cfg.Depth), done: make(chan struct{})}
	for i := range s.slots {
		s.idle = append(s.idle, uint16(cfg.Depth-1-i))
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run()
	if err := s.probe(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", cfg.TargetName, err)
	}
	return s, nil
}

// probe reads the capacity and the limits.
func (s *Session) probe(ctx context.Context) error {
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	s.transfer, s.unmap, s.same = 1<<20, 1<<30, 1<<20
	r, err := s.Command(ctx, []byte{0x12, 1, 0xb0, 0, 255, 0}, nil, 255)
	if err == nil && r.Status == scsi.Good && len(r.Data) >= 44 {
		limit := func(v *int64, blocks uint64) {
			if blocks != 0 && blocks < 1<<40 {
				*v = int64(blocks) * block.SectorSize
			}
		}
		limit(&s.transfer, uint64(be.Uint32(r.Data[8:])))
		limit(&s.unmap, uint64(be.Uint32(r.Data[20:])))
		limit(&s.same, be.Uint64(r.Data[36:]))
	}
	return err
}

// Refresh reads the capacity again.
func (s *Session) Refresh(ctx context.Context) error {
	r, err := s.Command(ctx, []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, nil, 32)
	if err == nil {
		err = r.Err()
	}
	if err == nil && len(r.Data) < 12 {
		err = fmt.Errorf("%d bytes of capacity", len(r.Data))
	}
	if err == nil && be.Uint32(r.Data[8:]) != block.SectorSize {
		err = fmt.Errorf("logical blocks of %d bytes", be.Uint32(r.Data[8:]))
	}
	if err != nil {
		return fmt.Errorf("READ CAPACITY: %w", err)
	}
	s.size.Store(int64(be.Uint64(r.Data)+1) * block.SectorSize)
	return nil
}

// Size implements block.Device: the capacity as last read.
func (s *Session) Size() int64 { return s.size.Load() }

// Pauses returns the times without connection so far.
func (s *Session) Pauses() []Pause {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Pause(nil), s.pauses...)
}

// Disconnect breaks the connection as a fault of the network would, for tests.
func (s *Session) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		s.link.nc.Close()
	}
}

// Close logs out if it can, and fails what is outstanding.
func (s *Session) Close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	l := s.link
	s.mu.Unlock()
	if first && l != nil {
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.NopTimeout)
		s.logout(ctx)
		cancel()
		l.nc.Close()
	}
	s.cancel()
	<-s.done
	return nil
}

// run reads from one connection after the other until the session is over.
func (s *Session) run() {
	defer close(s.done)
	for {
		stop := make(chan struct{})
		go s.keepAlive(s.link, stop)
		err := s.read(s.link)
		close(stop)
		s.lost(err)
		if err = s.reconnect(err); err != nil {
			s.fail(err)
			return
		}
	}
}

// lost takes back the commands that have no response, in their order.
func (s *Session) lost(err error) {
	l := s.link
	l.nc.Close()
	l.out.Fail(err)
	l.out.WaitIdle() // nothing refers to the data of commands any more
	l.in.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = nil
	s.pauses = append(s.pauses, Pause{From: time.Now(), Cause: err})
	s.takeBack()
}

// reconnect logs in again, or returns why the session is over.
func (s *Session) reconnect(cause error) error {
	deadline := time.Now().Add(s.cfg.ReplacementTimeout)
	s.cfg.Log.Warn("initiator: connection lost", "target", s.cfg.TargetName, "cause", cause)
	for {
		s.mu.Lock()
		closing := s.closing
		s.mu.Unlock()
		switch {
		case closing || s.ctx.Err() != nil:
			return ErrClosed
		case !s.cfg.Reconnect || time.Now().After(deadline):
			return fmt.Errorf("%w: %w", ErrDisconnected, cause)
		}
		l, err := login(s.ctx, &s.cfg)
		if err == nil {
			s.mu.Lock()
			s.link = l
			p := &s.pauses[len(s.pauses)-1]
			p.To = time.Now()
			s.send()
			s.mu.Unlock()
			l.flush()
			s.cfg.Log.Info("initiator: connected again", "target", s.cfg.TargetName, "after", p.To.Sub(p.From))
			return nil
		}
		cause = err
		select {
		case <-s.ctx.Done():
		case <-time.After(s.cfg.RetryInterval):
		}
	}
}

// keepAlive pings a target that is silent and gives the connection up when there is no answer.
func (s *Session) keepAlive(l *link, stop chan struct{}) {
	if s.cfg.NopInterval < 0 {
		return
	}
	t := time.NewTicker(min(s.cfg.NopInterval, s.cfg.NopTimeout)/4 + 1)
	defer t.Stop()
	var pinged time.Time
	for {
		select {
		case <-stop:
			return
		case now := <-t.C:
			rx := time.Unix(0, l.lastRx.Load())
			switch {
			case rx.After(pinged) && now.Sub(rx) > s.cfg.NopInterval:
				pinged = now
				s.mu.Lock()
				s.ping(l)
				s.mu.Unlock()
				l.flush()
			case pinged.After(rx) && now.Sub(pinged) > s.cfg.NopTimeout:
				s.cfg.Log.Warn("initiator: target does not answer", "target", s.cfg.TargetName)
				l.nc.Close()
				return
			}
		}
	}
}

var _ block.Device = (*Session)(nil)

func dial(ctx context.Context, portal string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", portal)
	if err == nil {
		c.(*net.TCPConn).SetNoDelay(true)
	}
	return c, err
}
