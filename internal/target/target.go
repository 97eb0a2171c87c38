// Package target is the shell of a volume: it accepts the replicas' connections, feeds what they say and what front ends
// ask into the pure core (package volume), and does what the core decides. It implements block.Device.
//
// One mutex guards the core. A batch of requests, or all that one read from a replica's connection brought, takes it
// once; what comes out is put into the replicas' outboxes under the mutex and written after it is released, so that each
// batch costs one system call for each replica. The package relies on the replicas to apply what they get in order; it
// promises that block data is covered by a checksum from Submit to the replica's disk and back.
package target

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

const (
	// maxOpBlocks is the number of blocks of the largest write or read that goes to a replica as one (1 MiB).
	maxOpBlocks = 256
	// maxDiscardBlocks is the same for a discard (1 GiB).
	maxDiscardBlocks = 1 << 18
	// outboxLimit is the number of bytes that may wait for a replica before its connection is closed.
	outboxLimit = 256 << 20
)

// Record is the volume's record, kept outside of the data plane. Methods may block, for about a second, or several if what
// keeps the record has been slow; then they fail, so that the core decides anew.
type Record interface {
	// Read returns what the record holds now.
	Read(ctx context.Context) (volume.Record, error)
	// Write changes the record, from version from, which it was found to hold, to want, by compare-and-swap, and returns what
	// the record is after it has changed: want, or what somebody else wrote. An error leaves open whether it is written, now or later,
	// unless it wraps volume.ErrNotWritten.
	Write(ctx context.Context, from uint64, want volume.Record) (volume.Record, error)
}

// Config is what a Target needs.
type Config struct {
	Volume        string
	Size          int64        // bytes, a multiple of block.Size
	ReplicaListen net.Listener // where replicas connect; a TCP listener
	Record        Record
	Settings      volume.Settings
	Desired       volume.Desired
	// DropSessions ends the front end's sessions and returns when they submit nothing any more; nil: there are none. It
	// is called when another target has served the volume meanwhile: what these sessions ask may have been asked there too.
	DropSessions func()
	Log          *slog.Logger // default: slog.Default()
}

// Target serves one volume.
type Target struct {
	cfg     Config
	log     *slog.Logger
	changed chan struct{}
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu       sync.Mutex
	core     *volume.Core
	sessions map[volume.SessionID]*session
	lastID   volume.SessionID
	out      *output       // what is to be done after mu is released
	partial  []*writeState // requests that read before they write, and those that wait behind them, in order
	fences   int           // how often the front end's sessions are still to be dropped; nothing they submit is taken until then
	closed   bool
	failing  string // why the record could not be used the last time
	clock    clock

	Counters Counters
}

// New returns a target that does not serve yet.
func New(cfg Config) *Target {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	t := &Target{
		cfg: cfg, log: cfg.Log.With("volume", cfg.Volume), clock: newClock(boottime), changed: make(chan struct{}, 1),
		core:     volume.NewCore(newNonce(), cfg.Size, cfg.Settings, cfg.Desired),
		sessions: map[volume.SessionID]*session{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

func newNonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// Serve accepts replicas until ctx ends or Close is called, and returns when everything that it started has ended. The error
// is nil after either.
func (t *Target) Serve(ctx context.Context) error {
	defer t.tasks.Wait()
	defer t.Close()
	stop := context.AfterFunc(ctx, t.Close)
	defer stop()
	t.tasks.Go(t.tick)
	for {
		conn, err := t.cfg.ReplicaListen.Accept()
		if err != nil {
			if t.ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				t.log.Warn("cannot accept replicas", "error", err)
				t.pause(100 * time.Millisecond)
				continue
			}
			return fmt.Errorf("target of %s: accept replicas: %w", t.cfg.Volume, err)
		}
		t.tasks.Go(func() { t.serve(conn.(*net.TCPConn)) })
	}
}

// Close ends the target: connections are closed, what is in flight is not completed.
func (t *Target) Close() {
	now := t.enter()
	t.closed = true
	t.core.Stop(now) // which the replicas are told
	t.leave()
	t.cancel()
	t.cfg.ReplicaListen.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		s.out.Close()
	}
}

// pause waits for d or for Close; false after Close.
func (t *Target) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// tick lets the core see time pass.
func (t *Target) tick() {
	every := t.cfg.Settings.PingEvery
	if every <= 0 {
		every = 250 * time.Millisecond
	}
	for t.pause(min(every/2, 50*time.Millisecond)) {
		now := t.enter()
		t.core.Tick(now)
		t.leave()
	}
}

// Want hands on what the control plane wants of the membership.
func (t *Target) Want(d volume.Desired) {
	now := t.enter()
	t.core.Want(now, d)
	t.leave()
}

// Above lets the volume be served in an epoch above e.
func (t *Target) Above(e uint64) {
	now := t.enter()
	t.core.Above(now, e)
	t.leave()
}

// CutOff tells whether the control plane has not been heard of for long.
func (t *Target) CutOff(yes bool) {
	now := t.enter()
	t.core.CutOff(now, yes)
	t.leave()
}

// told hands on that the initiator knows that something may be lost.
func (t *Target) told(lost volume.Promise) {
	now := t.enter()
	t.core.Told(now, lost)
	t.leave()
}

// Status describes the volume.
func (t *Target) Status() volume.Status {
	now := t.enter()
	defer t.leave()
	t.core.Tick(now) // this process may have been frozen
	st := t.core.Status()
	if t.fences > 0 {
		st.Serving, st.Holding = false, "another target has served the volume: ending the initiators' sessions"
	}
	return st
}

// Changed gives a hint, at most one at a time, that Status has changed.
func (t *Target) Changed() <-chan struct{} { return t.changed }

// Size implements block.Device.
func (t *Target) Size() int64 { return t.cfg.Size }

// enter takes the mutex and returns the time for the core.
func (t *Target) enter() time.Duration {
	t.mu.Lock()
	if t.out == nil {
		t.out = outputs.Get().(*output)
	}
	return t.clock.now()
}

// leave does what the core wants, releases the mutex, writes to the replicas and completes requests.
func (t *Target) leave() {
	t.drain()
	out := t.out
	t.out = nil
	t.mu.Unlock()
	for _, s := range out.dirty {
		s.out.Flush()
	}
	for _, s := range out.closes {
		s.out.Close()
	}
	out.complete()
	out.reset()
	outputs.Put(out)
}

// output is what one hold of the mutex has to do after it.
type output struct {
	dirty  []*session // have something to send
	closes []*session
	done   []*block.Request // to be completed
	group  []*block.Request
	frame  []byte
}

var outputs = sync.Pool{New: func() any { return new(output) }}

func (o *output) reset() {
	clear(o.dirty)
	clear(o.closes)
	clear(o.done)
	clear(o.group)
	o.dirty, o.closes, o.done, o.group = o.dirty[:0], o.closes[:0], o.done[:0], o.group[:0]
}

// complete hands the requests back, all of one client at once.
func (o *output) complete() {
	for i, first := range o.done {
		if first == nil {
			continue
		}
		o.group = append(o.group[:0], first)
		for j := i + 1; j < len(o.done); j++ {
			if r := o.done[j]; r != nil && r.Client == first.Client {
				o.group = append(o.group, r)
				o.done[j] = nil
			}
		}
		first.Client.Complete(o.group)
	}
}

// send marks a session as one that has something to send. t.mu is held.
func (t *Target) send(s *session) {
	if !s.dirty {
		s.dirty = true
		t.out.dirty = append(t.out.dirty, s)
	}
}
