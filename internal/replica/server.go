// Package replica serves the replicas of one pool: for each it keeps a session to its volume's target and applies the
// stream of operations that comes on it, it pulls what a rebuilding replica lacks from another replica's server, and it
// lets others pull and inspect. What to promise, what may be applied and when to pull is decided by the pure part
// (volume.Member); this package moves bytes and makes state durable before anything relies on it.
//
// A session is run to completion by one goroutine: all operations that one read brought are verified, applied as one
// batch and acknowledged with one write. Flushes of all replicas share one goroutine, so that they share device flushes.
package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// Config is what a Server needs.
type Config struct {
	Pool       *pool.Pool
	PullListen net.Listener // where other replicas pull from; the server closes it
	PullAddr   string       // host:port under which they reach it; default: the listener's address
	BootID     string       // of the machine; default: the kernel's
	Log        *slog.Logger // default: slog.Default()
	// OutboxBytes is what the replicas share for answers that targets do not take. Default: 16 MiB for each replica.
	OutboxBytes int64
}

// Spec says which replica to serve.
type Spec struct {
	Name      string // in the pool
	ReplicaID string
	Target    string // host:port
	Size      int64  // bytes; of a replica that does not exist yet
}

// Status describes a replica for the control plane.
type Status struct {
	Name       string
	ReplicaID  string
	GUID       block.GUID
	Connected  bool // to its target
	Complete   bool
	Member     bool // in the committed member list, as the replica knows it
	InSync     bool // connected, complete, a member, and getting the stream
	Rebuilding bool
	Progress   volume.Progress
	Used       int64 // bytes of stored blocks
	Allocated  int64 // bytes taken in the pool
	Size       int64 // bytes
	LastError  string
}

// Server serves the replicas of one pool. All methods may be called concurrently.
type Server struct {
	cfg     Config
	log     *slog.Logger
	flusher *flusher
	paces   paces         // of the rebuilds
	stages  chan struct{} // one for each replica that catches up at once
	cuts    chan struct{} // and for each of a peer for which that is gathered
	start   time.Time     // of the members' clock
	changed chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	full      atomic.Bool  // the pool has no room for more
	least     atomic.Int64 // while it has none: see mayStream
	unchecked atomic.Int64 // bytes written since space was looked at
	share     atomic.Int64 // of each session, of Config.OutboxBytes

	changing sync.Mutex // held by Attach and Detach, which wait for sessions to end
	mu       sync.Mutex // guards replicas; sessions take it
	replicas map[string]*attached
	spared   map[string]bool // of those that were detached
}

// New returns a server that has no replicas yet. Attach may be called before Serve.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.PullAddr == "" {
		cfg.PullAddr = cfg.PullListen.Addr().String()
	}
	if cfg.BootID == "" {
		cfg.BootID = bootID(cfg.Log)
	}
	s := &Server{cfg: cfg, log: cfg.Log, start: time.Now(), changed: make(chan struct{}, 1), replicas: map[string]*attached{}, spared: map[string]bool{}}
	s.share.Store(outboxPause)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.flusher = newFlusher(cfg.Pool)
	s.stages, s.cuts = make(chan struct{}, mostStages), make(chan struct{}, mostStages)
	s.tasks.Go(func() { s.flusher.run(s.ctx) })
	return s
}

// SetRebuildLimit bounds what all rebuilds into the pool move together, in bytes/s of data; zero: they have no limit but what
// their targets say.
func (s *Server) SetRebuildLimit(bytesPerSec int64) { s.paces.setLimit(bytesPerSec) }

// now is the members' clock.
func (s *Server) now() time.Duration { return time.Since(s.start) }

// Serve lets others pull until ctx ends, then ends all sessions. The pool stays open.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.shut)
	defer stop()
	defer s.tasks.Wait()
	defer s.shut()
	s.tasks.Go(s.watchSpace)
	for {
		conn, err := s.cfg.PullListen.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				s.log.Warn("cannot accept pulls", "error", err)
				pause(s.ctx, 100*time.Millisecond)
				continue
			}
			return fmt.Errorf("replica server: accept pulls: %w", err)
		}
		s.tasks.Go(func() { s.source(conn) })
	}
}

func (s *Server) shut() {
	s.cancel()
	s.cfg.PullListen.Close()
}

// Attach serves a replica: it is made in the pool if it does not exist, and a session to its target is kept. If the
// replica is attached already with another target, the session moves there.
func (s *Server) Attach(spec Spec) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if a := s.find(spec.Name); a != nil {
		if a.spec.Target == spec.Target && a.spec.ReplicaID == spec.ReplicaID {
			return nil
		}
		s.detach(a)
	}
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("replica server has ended: %w", err)
	}
	r := s.cfg.Pool.Replica(spec.Name)
	if r == nil {
		var err error
		if r, err = s.cfg.Pool.CreateReplica(spec.Name, spec.Size); err != nil {
			return err
		}
	}
	a, err := newAttached(s, spec, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replicas[spec.Name] = a
	delete(s.spared, spec.Name)
	s.shareOutboxes()
	s.mu.Unlock()
	if s.checkSpace() { // its share of the reserve counts from now on
		s.tellSpace()
	}
	s.tasks.Go(a.run)
	s.hint()
	return nil
}

// Detach ends a replica's session and returns when nothing touches the replica any more.
func (s *Server) Detach(name string) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if a := s.find(name); a != nil {
		s.detach(a)
	}
}

// detach ends a replica's session. s.changing is held.
func (s *Server) detach(a *attached) {
	s.mu.Lock()
	delete(s.replicas, a.spec.Name)
	s.shareOutboxes()
	s.mu.Unlock()
	a.stop()
	s.mu.Lock()
	s.spared[a.spec.Name] = a.isSpared()
	s.mu.Unlock()
	s.hint()
}

// shareOutboxes gives each session its part of what may wait for targets. s.mu is held.
func (s *Server) shareOutboxes() {
	if s.cfg.OutboxBytes > 0 {
		s.share.Store(min(max(s.cfg.OutboxBytes/int64(max(len(s.replicas), 1)), outboxLeast), outboxPause))
	}
}

func (s *Server) find(name string) *attached {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicas[name]
}

// Known returns the replicas that are to be served although nobody says so: those that were attached last, not forgotten
// since, and are members of their volume by what they have recorded. One that was to become a member is not among them:
// whether it still is wanted only the control plane knows.
func (s *Server) Known() (all []Spec) {
	for _, r := range s.cfg.Pool.Replicas() {
		st, err := decodeState(r.State())
		if err != nil {
			s.log.Warn("replica is not served", "replica", r.Name(), "error", err)
			continue
		}
		if st.Place != (volume.Place{}) && len(StandingOf(r.GUID(), st, false).lists) > 0 {
			all = append(all, Spec{Name: r.Name(), ReplicaID: st.Place.ReplicaID, Target: st.Place.Target, Size: r.Size()})
		}
	}
	slices.SortFunc(all, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Forget ends a replica's session, and keeps the replica from being Known. Its data stays.
func (s *Server) Forget(name string) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if a := s.find(name); a != nil {
		s.detach(a)
	}
	r := s.cfg.Pool.Replica(name)
	if r == nil {
		return
	}
	st, err := decodeState(r.State())
	if err == nil && st.Place != (volume.Place{}) {
		st.Place = volume.Place{}
		err = putState(r, st)
	}
	if err != nil {
		s.log.Warn("cannot note that a replica is not served any more", "replica", name, "error", err)
	}
}

// Destroy ends a replica's session and gives its data up. Destroying what does not exist is no error.
func (s *Server) Destroy(name string) error {
	s.Detach(name)
	s.mu.Lock()
	delete(s.spared, name)
	s.mu.Unlock()
	if err := s.cfg.Pool.DestroyReplica(name); err != nil && !errors.Is(err, pool.ErrNotFound) {
		return err
	}
	return nil
}

// Status describes the attached replicas, by name.
func (s *Server) Status() []Status {
	var all []Status
	for _, a := range s.attached() {
		all = append(all, a.status())
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Changed gives a hint, at most one at a time, that Status has changed.
func (s *Server) Changed() <-chan struct{} { return s.changed }

func (s *Server) hint() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Server) attached() []*attached {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*attached, 0, len(s.replicas))
	for _, a := range s.replicas {
		all = append(all, a)
	}
	return all
}

// The pool counts as full when it is above its read-only limit, which the engine keeps rebuilds to but not what was
// sequenced, or when less than its reserve is free, so that what is in flight at that moment still finds room: an operation
// that was sequenced can only be sent again until there is. Each volume's front end has at most 64 MiB under way.
const (
	reserveBytes   = 32 << 20
	reserveEach    = 64 << 20 // for each replica
	reserveDivisor = 8        // of the capacity, if that is less
	checkBytes     = 4 << 20  // space is looked at after that much was written
)

// reserve returns the bytes below which a pool of that capacity, with so many replicas, counts as full.
func reserve(capacity int64, replicas int) int64 {
	return min(reserveBytes+int64(max(replicas, 1))*reserveEach, capacity/reserveDivisor)
}

// reserve returns the bytes below which this server's pool, of that capacity, counts as full.
func (s *Server) reserve(capacity int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return reserve(capacity, len(s.replicas))
}

// watchSpace notices space that was given back.
func (s *Server) watchSpace() {
	for pause(s.ctx, 200*time.Millisecond) {
		if s.checkSpace() {
			s.tellSpace()
		}
	}
}

// wrote counts bytes that were applied, and notices when space runs out. It reports whether targets must be told.
func (s *Server) wrote(n int64) bool {
	if s.unchecked.Add(n) < checkBytes {
		return false
	}
	s.unchecked.Store(0)
	return s.checkSpace()
}

// checkSpace reports whether the pool became full, or stopped being it.
func (s *Server) checkSpace() bool {
	stats := s.cfg.Pool.Stats()
	reserve := s.reserve(stats.Capacity)
	full := s.full.Load()
	switch {
	case stats.ReadOnly || stats.Free < reserve:
		if !full {
			s.least.Store(min(reserve/2, stats.Free/4*3))
		}
		full = true
	case stats.Free > reserve+reserve/4 && stats.BelowLimit > reserve/16:
		full = false
	}
	if s.full.Swap(full) == full {
		return false
	}
	s.log.Warn("pool space", "full", full, "readOnly", stats.ReadOnly, "free", stats.Free, "capacity", stats.Capacity)
	return true
}

// mayStream bounds what the live streams of replicas that rebuild take of the reserve of a full pool, which is for what other
// replicas' targets have in flight: the volumes' writes go on, unlike those of a volume that counts on the pool. Half of the
// reserve, or three quarters of what was left as the pool became full, stay free, however often a rebuild begins again.
func (s *Server) mayStream() error {
	if s.full.Load() && s.cfg.Pool.Stats().Free < s.least.Load() {
		return errNoRoom
	}
	return nil
}

// tellSpace tells all targets whether there is room for more.
func (s *Server) tellSpace() {
	for _, a := range s.attached() {
		a.tellSpace()
	}
}

// bootID names the kernel's present boot.
func bootID(log *slog.Logger) string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Warn("the kernel does not tell one boot from another: replicas count as having lost power at every start", "error", err)
		return block.NewGUID().String()
	}
	return strings.TrimSpace(string(b))
}

// decodeState reads a replica's state from its pool; a new replica has none.
func decodeState(b []byte) (st volume.State, err error) {
	if len(b) == 0 {
		return st, nil
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("replication state: %w", err)
	}
	return st, nil
}

// putState writes a replica's state. Nothing else may touch the replica meanwhile.
func putState(r *pool.Replica, st volume.State) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return r.PutState(b, r.Applied())
}

// pause waits for d; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
