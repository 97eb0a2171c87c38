package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// attached is a replica that is served.
type attached struct {
	server *Server
	spec   Spec
	news   bool // the state has changed by the replica's being served: see begin
	r      *pool.Replica
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // when run has returned

	// mu guards the member and, with it, the order of what changes the replica's state: it is held while operations are
	// applied and while state is put into the log, but never while a device is flushed.
	mu      sync.Mutex
	member  *volume.Member
	session *session // nil: not connected
	lastID  volume.SessionID
	pull    *pull

	// view guards what Status shows, so that it never waits for a disk.
	view      sync.Mutex
	connected bool
	streaming bool
	complete  bool
	isMember  bool
	spared    bool
	pulling   bool
	progress  volume.Progress
	lastError string
}

func newAttached(s *Server, spec Spec, r *pool.Replica) (*attached, error) {
	a := &attached{server: s, spec: spec, r: r, log: s.log.With("replica", spec.Name), ended: make(chan struct{})}
	if err := a.asRecorded(); err != nil {
		return nil, fmt.Errorf("replica %s: %w", spec.Name, err)
	}
	a.ctx, a.cancel = context.WithCancel(s.ctx)
	a.show()
	return a, nil
}

// asRecorded makes the member what the replica's state record says, without a session. a.mu is held, or nobody else has a
// yet.
func (a *attached) asRecorded() error {
	st, err := decodeState(a.r.State())
	if err != nil {
		return err
	}
	moved := st.Place != a.place()
	st.Place = a.place()
	a.news = st.Started(a.server.cfg.BootID) || moved
	a.member = volume.NewMember(a.server.now(), volume.Report{
		GUID: a.r.GUID(), ReplicaID: a.spec.ReplicaID, Name: a.spec.Name, PullAddr: a.server.cfg.PullAddr,
		State: st, Last: a.r.Applied(), Size: a.r.Size(), Stages: true, Paces: true,
	}, volume.LeaseTime)
	return nil
}

func (a *attached) place() volume.Place {
	return volume.Place{ReplicaID: a.spec.ReplicaID, Target: a.spec.Target}
}

// stop ends the session and the pull and waits until they have ended.
func (a *attached) stop() {
	a.cancel()
	<-a.ended
}

// errPool is wrapped by errors after which the replica cannot go on in this process: its state in memory may be ahead
// of what is durable.
var errPool = errors.New("pool failed")

// begin makes stable where the replica is served, and that it is in this boot of the machine, before a target hears of it.
func (a *attached) begin() error {
	if !a.news {
		return nil
	}
	a.mu.Lock()
	rep := a.member.Report()
	a.mu.Unlock()
	if rep.State.Suspect {
		a.log.Warn("the machine went down, or the pool failed, without the pool having been stopped: what was not flushed may be gone")
	}
	return a.record(rep.State)
}

// finish makes everything stable, and that the replica is not served any more. Nothing changes it after its session.
func (a *attached) finish() {
	a.mu.Lock()
	st := a.member.Report().State
	a.mu.Unlock()
	st.Stopped()
	if err := a.record(st); err != nil {
		a.log.Warn("the replica could not be stopped in good order", "error", err)
	}
}

// record makes state stable while there is no session.
func (a *attached) record(st volume.State) error {
	b, err := json.Marshal(st)
	if err == nil {
		err = a.r.PutState(b, a.r.Applied())
	}
	if err == nil {
		err = a.server.cfg.Pool.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errPool, err)
	}
	return nil
}

// run keeps a session to the target.
func (a *attached) run() {
	defer close(a.ended)
	if err := a.begin(); err != nil {
		a.note(err)
		a.log.Error("the replica is out of service until its pool is opened again", "error", err)
		a.cancel()
		return
	}
	const first, last = 50 * time.Millisecond, time.Second
	level := slog.LevelInfo // an outage is told once, not at every attempt
	for wait := first; ; {
		start := time.Now()
		err := a.connect()
		if a.ctx.Err() != nil {
			a.finish()
			return
		}
		if time.Since(start) > 2*last {
			wait, level = first, slog.LevelInfo
		}
		a.log.Log(a.ctx, level, "no session with the target, trying again", "target", a.spec.Target, "reason", err)
		level = slog.LevelDebug
		a.note(err)
		if errors.Is(err, errPool) {
			a.log.Error("the replica is out of service until its pool is opened again", "error", err)
			a.cancel() // it is no source either
			return
		}
		if !pause(a.ctx, wait) {
			a.finish()
			return
		}
		wait = min(2*wait, last)
	}
}

// connect runs one session until it ends, and says why it did.
func (a *attached) connect() error {
	dialer := net.Dialer{Timeout: 3 * time.Second}
	conn, err := dialer.DialContext(a.ctx, "tcp", a.spec.Target)
	if err != nil {
		return fmt.Errorf("connect to the target: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(a.ctx, func() { conn.Close() })
	defer stop()
	s, err := newSession(a, conn.(*net.TCPConn))
	if err != nil {
		return err
	}
	return s.run()
}

// do does what the member wants, for session s. State goes into the log at once, before anything that is applied later;
// what relies on it is said when a flush has made it stable, for which nobody waits here. a.mu is held.
func (a *attached) do(s *session, ready volume.MemberReady) error {
	return a.doBy(s, ready, func(state []byte) error { return a.r.PutState(state, ready.Applied) })
}

// doBy is do with a way to put the state into the log. a.mu is held.
func (a *attached) doBy(s *session, ready volume.MemberReady, put func(state []byte) error) error {
	if ready.StopPull || ready.Pull != nil {
		a.stopPull()
	}
	if ready.State != nil {
		b, err := json.Marshal(ready.State)
		if err != nil {
			return fmt.Errorf("%w: %w", errPool, err)
		}
		err = put(b)
		if errors.Is(err, pool.ErrTooLarge) && !errors.Is(err, pool.ErrFailed) || errors.Is(err, errNotStaged) {
			return a.unrecorded(err)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errPool, err)
		}
		s.restate(ready.Applied)
	}
	if ready.After > 0 {
		s.wakeIn(ready.After)
	}
	if pong, ok := only[volume.Pong](ready.Messages); ok {
		s.send(pong)
	} else if ready.State != nil || len(ready.Messages) > 0 {
		a.server.flusher.say(s, ready.State != nil, ready.Messages)
	}
	if ready.Pull != nil {
		a.startPull(*ready.Pull)
	}
	if ready.Pace != nil && a.pull != nil {
		a.pull.pace.set(*ready.Pace)
	}
	a.show()
	if ready.Close != "" {
		return errors.New(ready.Close)
	}
	return nil
}

// unrecorded takes back what the member has become, since the pool has no room for the record of it and is as it was: the
// session ends, whose target is told why, and the next one finds the replica as its record says. a.mu is held.
func (a *attached) unrecorded(cause error) error {
	a.stopPull()
	if err := a.asRecorded(); err != nil {
		return fmt.Errorf("%w: %w", errPool, err)
	}
	a.show()
	return fmt.Errorf("the replica's state cannot be recorded: %w", cause)
}

// only returns the message if there is exactly one, of that type.
func only[M volume.Message](messages []volume.Message) (m M, ok bool) {
	if len(messages) == 1 {
		m, ok = messages[0].(M)
	}
	return m, ok
}

// tellSpace tells the target, if there is a session, whether there is room for more. The last that a session says is what
// holds, since it is looked at and said under mu.
func (a *attached) tellSpace() {
	a.mu.Lock()
	s := a.session
	if s != nil {
		s.send(volume.Space{Full: a.server.full.Load()})
	}
	a.mu.Unlock()
	if s != nil {
		s.out.Flush()
	}
}

// show makes Status see the member's state. a.mu is held, or nobody else has a yet.
func (a *attached) show() {
	rep := a.member.Report()
	a.view.Lock()
	defer a.view.Unlock()
	complete, member := rep.State.Complete, rep.State.Committed.Has(rep.GUID)
	pulling := a.pull != nil && !a.pull.what.Stage // one that catches up at once is no less than it was
	if complete != a.complete || member != a.isMember || a.connected != (a.session != nil) || a.pulling != pulling {
		a.server.hint()
	}
	a.complete, a.isMember, a.connected, a.pulling = complete, member, a.session != nil, pulling
	a.spared = a.member.Spared()
	if a.session == nil {
		a.streaming = false
	}
}

// isSpared reports whether the target has said that the volume does not need the replica.
func (a *attached) isSpared() bool {
	a.view.Lock()
	defer a.view.Unlock()
	return a.spared
}

// inStream tells Status that the target counts on this replica.
func (a *attached) inStream() {
	a.view.Lock()
	defer a.view.Unlock()
	if !a.streaming {
		a.streaming = true
		a.log.Info("receiving the volume's writes", "target", a.spec.Target)
		a.server.hint()
	}
}

// note keeps an error for Status.
func (a *attached) note(err error) {
	a.view.Lock()
	defer a.view.Unlock()
	if text := fmt.Sprint(err); err != nil && text != a.lastError {
		a.lastError = text
		a.server.hint()
	}
}

func (a *attached) status() Status {
	stats := a.r.Stats()
	a.view.Lock()
	defer a.view.Unlock()
	st := Status{
		Name: a.spec.Name, ReplicaID: a.spec.ReplicaID, GUID: a.r.GUID(), Connected: a.connected, Complete: a.complete,
		Member: a.isMember, InSync: a.connected && a.complete && a.isMember && a.streaming, Rebuilding: a.pulling,
		Used: stats.Used, Allocated: stats.Allocated, Size: a.r.Size(), LastError: a.lastError,
	}
	if a.pulling {
		st.Progress = a.progress
	}
	if st.InSync {
		st.LastError = ""
	}
	return st
}
