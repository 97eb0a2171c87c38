package replica

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

const (
	outboxLimit = 256 << 20 // bytes waiting for the target, after which the session ends
	outboxPause = 16 << 20  // bytes waiting for the target, above which no more of its requests are done; less for many replicas
	outboxLeast = 1 << 20   // and that at least

	// A target that serves lets every replica hear of it once a second; after so many looks at a session that waits to hear
	// anything the target is gone, or frozen, and another may be there.
	silenceLook  = 200 * time.Millisecond
	silenceLooks = 15
)

var errSilent = errors.New("nothing was heard of the target for 3 s")

// session is one connection to the target.
type session struct {
	a    *attached
	id   volume.SessionID
	conn *net.TCPConn
	out  *wire.Outbox

	applied atomic.Uint64 // number of the last operation applied
	stable  atomic.Uint64 // number up to which everything is stable

	waiting atomic.Int64          // looks since it waits for the target to send or take something, plus one; 0: it does not
	failed  atomic.Pointer[error] // why it was ended from elsewhere

	// The rest belongs to the goroutine of run.
	ops    []volume.Op // decoded, not yet applied
	batch  []pool.Op
	sums   []uint32
	frame  []byte
	acked  bool // an acknowledgement is due
	reader *wire.Reader

	answered int64 // bytes of data queued since pause
}

// newSession registers at the target. The previous session has ended: run is called by one goroutine.
func newSession(a *attached, conn *net.TCPConn) (*session, error) {
	if err := wire.Tune(conn); err != nil {
		return nil, err
	}
	out, err := wire.NewOutbox(conn, outboxLimit)
	if err != nil {
		return nil, err
	}
	s := &session{a: a, conn: conn, out: out}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastID++
	s.id = a.lastID
	a.member.Connect(s.id)
	rep := a.member.Report()
	s.applied.Store(rep.Last.N)
	a.session = s
	s.send(volume.Register{Report: rep})
	if a.server.full.Load() {
		s.send(volume.Space{Full: true})
	}
	out.Flush()
	a.show()
	return s, nil
}

// send queues a message.
func (s *session) send(m volume.Message) {
	b, err := wire.AppendMessage(nil, m)
	if err != nil {
		s.a.log.Error("cannot encode a message", "error", err)
		s.out.Close()
		return
	}
	s.out.AppendCopy(b)
}

// run reads and does what the target sends until the connection ends.
func (s *session) run() error {
	s.reader = wire.NewReader(s.conn)
	ended := make(chan struct{})
	go s.watch(ended)
	err := s.loop()
	broken := errors.Is(err, errPool) // whatever happens to the connection besides
	if sent := s.out.Err(); sent != nil && !errors.Is(sent, net.ErrClosed) && !broken {
		err = sent
	}
	if !errors.Is(err, net.ErrClosed) && s.out.Err() == nil && !isEnd(err) {
		s.send(volume.Failed{Reason: err.Error()})
		s.out.Flush()
		s.waiting.Store(1)
		s.out.Wait(0, func() { s.waiting.Store(1) }) // a target that takes something hears of it
	}
	close(ended)
	s.out.Close()
	s.reader.Close()
	s.end()
	if failed := s.failed.Load(); failed != nil && !broken {
		err = *failed
	}
	return err
}

// end returns when nothing of the session goes on: what the next one tells of the replica is stable.
func (s *session) end() {
	a := s.a
	a.mu.Lock()
	a.stopPull()
	a.session = nil
	a.member.Disconnect(s.id)
	a.show()
	a.mu.Unlock()
	a.server.flusher.drain(s)
}

// watch ends the session when the target is silent. It counts how often it found nothing instead of looking at a clock: if it
// was this process that did not run, that was one look; and what the session spends with the disk does not count.
func (s *session) watch(ended <-chan struct{}) {
	look := time.NewTicker(silenceLook)
	defer look.Stop()
	for {
		select {
		case <-ended:
			return
		case <-look.C:
		}
		if n := s.waiting.Load(); n > silenceLooks {
			s.failed.CompareAndSwap(nil, &errSilent)
			s.out.Close()
			return
		} else if n > 0 {
			s.waiting.CompareAndSwap(n, n+1)
		}
	}
}

func (s *session) loop() error {
	for {
		s.waiting.Store(1)
		err := s.reader.Fill()
		s.waiting.Store(0)
		if err != nil {
			return err
		}
		for {
			f, ok, err := s.reader.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if err := s.take(&f); err != nil {
				return err
			}
		}
		if err := s.apply(); err != nil {
			return err
		}
		if s.acked {
			s.acked = false
			s.ack()
		}
		s.pause()
	}
}

// pause sends what is queued, and waits while that is more than half of the session's share: the other half is what may be
// queued until the next time.
func (s *session) pause() {
	s.answered = 0
	s.out.Flush()
	s.waiting.Store(1)
	s.out.Wait(int(s.a.server.share.Load()/2), func() { s.waiting.Store(1) }) // a target that takes something is there
	s.waiting.Store(0)
}

// ack queues an acknowledgement of all that is applied.
func (s *session) ack() {
	s.out.AppendHeader(wire.Ack(s.applied.Load(), s.stable.Load()))
}

// take does one frame. Operations are gathered; whatever else comes finds them applied.
func (s *session) take(f *wire.Frame) (err error) {
	if f.Type == wire.TypeWrite || f.Type == wire.TypeDiscard {
		n := len(s.ops)
		if n < cap(s.ops) {
			s.ops = s.ops[:n+1]
		} else {
			s.ops = append(s.ops, volume.Op{})
		}
		s.sums, err = f.Op(&s.ops[n], s.sums)
		return err
	}
	if err := s.apply(); err != nil {
		return err
	}
	switch f.Type {
	case wire.TypeOpen:
		return s.open(f)
	case wire.TypeFlush:
		s.a.inStream() // every way of joining ends with a flush
		s.a.server.flusher.request(s, f.N)
		return nil
	case wire.TypeRead:
		return s.read(f)
	case wire.TypeMessage:
		m, err := f.Message()
		if err != nil {
			return err
		}
		if j, ok := m.(volume.Join); ok {
			if err := s.a.server.mayStream(); err != nil {
				s.send(volume.JoinFailed{Attempt: j.Attempt, Reason: err.Error()}) // it stays what it is, and nothing is streamed
				return nil
			}
		}
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return s.a.do(s, s.a.member.Step(s.a.server.now(), s.id, m))
	}
	return fmt.Errorf("%w: unexpected %v from the target", wire.ErrFormat, f.Type)
}

// wakeIn lets the member go on in d with what it has put off, if the session is still there. a.mu is held.
func (s *session) wakeIn(d time.Duration) {
	a := s.a
	time.AfterFunc(d, func() {
		a.mu.Lock()
		var err error
		if a.session == s {
			err = a.do(s, a.member.Wake(a.server.now(), s.id))
		}
		a.mu.Unlock()
		if err != nil {
			s.failed.CompareAndSwap(nil, &err)
			s.out.Close()
		}
		s.out.Flush()
	})
}

// apply hands the gathered operations to the pool as one batch.
func (s *session) apply() error {
	if len(s.ops) == 0 {
		return nil
	}
	first, last := s.ops[0].Version, s.ops[len(s.ops)-1].Version
	s.batch = s.batch[:0]
	fua, bytes := false, int64(0)
	for i := range s.ops {
		op := &s.ops[i]
		if op.Version != (block.Version{Epoch: first.Epoch, N: first.N + uint64(i)}) {
			return fmt.Errorf("operation %v came at the place of %d.%d", op.Version, first.Epoch, first.N+uint64(i))
		}
		fua = fua || op.FUA
		bytes += int64(len(op.Data))
		p := pool.Op{Kind: pool.OpDiscard, Block: op.Block, Count: op.Count, Version: op.Version}
		if op.Kind == volume.OpWrite {
			p.Kind, p.Data, p.Sums = pool.OpWrite, op.Data, op.Sums
		}
		s.batch = append(s.batch, p)
	}
	err := s.applyBatch(first, last)
	if err == nil && s.a.server.wrote(bytes) {
		s.a.server.tellSpace()
	}
	clear(s.ops)
	clear(s.batch)
	s.ops, s.sums = s.ops[:0], s.sums[:0]
	if fua && err == nil {
		s.a.server.flusher.request(s, last.N)
	}
	return err
}

func (s *session) applyBatch(first, last block.Version) error {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.member.Check(s.id, first, len(s.batch)); err != nil {
		return err
	}
	if err := a.r.Apply(s.batch); err != nil {
		if errors.Is(err, pool.ErrFailed) {
			err = fmt.Errorf("%w: %w", errPool, err)
		}
		return fmt.Errorf("apply %v to %v: %w", first, last, err)
	}
	a.member.Applied(last)
	s.applied.Store(last.N)
	s.acked = true
	return nil
}

// open applies the operation that opens an epoch. It is acknowledged as stable when the new history is, on which the target
// waits before the replica counts.
func (s *session) open(f *wire.Frame) error {
	var op volume.Op
	if _, err := f.Op(&op, nil); err != nil {
		return err
	}
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inStream()
	if err := a.do(s, a.member.Open(s.id, &op)); err != nil {
		return err
	}
	s.acked = true
	return nil
}

// isEnd tells an ordinary end of a connection.
func isEnd(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || err.Error() == "EOF" || err.Error() == "unexpected EOF"
}
