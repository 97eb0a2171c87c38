package sim

import (
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// Volumes of the model are small, so that operations overlap and few chunks are left alone.
const (
	blocks      = 40
	chunkBlocks = 4
	ms          = time.Millisecond
)

// world is everything that exists in one run.
type world struct {
	rng    *rand.Rand // of what is going on
	net    *rand.Rand // of processes and the network
	now    time.Duration
	seq    uint64
	events events
	trace  io.Writer // nil: none
	cover  Coverage
	calm   bool // no more faults

	settings  volume.Settings
	replicas  []*replica // alive or to be started again; destroyed ones leave
	target    *target    // the newest one; nil between two of them
	other     *target    // the one before, when it goes on; the application goes on using it, too
	two       bool       // that may happen in this run
	stages    bool       // some replicas know how to catch up at once
	staging   *rand.Rand // what concerns that
	record    recordStore
	operator  operator
	shown     volume.Status // what the last target that served said
	app       app
	lastConn  volume.SessionID
	lastName  int
	destroy   map[block.GUID]bool
	seed      uint64
	epoch     uint64         // the highest that began
	order     volume.History // with which it began
	opens     map[uint64]volume.EpochStart
	losses    []loss
	mischiefs []mischief
	pullFails bool // the next pull's request does
	failed    error
}

// process is what can be killed and frozen.
type process struct {
	alive  bool
	life   int // counts starts
	frozen time.Duration
	born   time.Duration
	rate   float64 // of its clock
}

// start begins a life of the process, with a clock that is up to 5 % wrong.
func (p *process) start(w *world) {
	p.alive, p.frozen, p.born = true, 0, w.now
	p.life++
	switch p.rate = 0.95 + 0.1*w.rng.Float64(); w.rng.IntN(3) {
	case 0:
		p.rate = 0.95
	case 1:
		p.rate = 1.05
	}
}

// clock is the time that the process sees.
func (p *process) clock(w *world) time.Duration {
	return time.Duration(float64(w.now-p.born)*p.rate) + ms
}

type event struct {
	at   time.Duration
	seq  uint64
	proc *process
	life int
	conn *conn
	end  int // of conn
	rng  *rand.Rand
	do   func()
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(*event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// after runs do in d, in process p unless that is nil: not while p is frozen, and never when p was killed meanwhile.
func (w *world) after(d time.Duration, p *process, do func()) *event {
	e := &event{at: w.now + d, proc: p, do: do}
	if p != nil {
		e.life = p.life
	}
	w.push(e)
	return e
}

// push queues an event. What a fault, the application or the operator does later is drawn from where it was begun; whatever
// happens in processes and on connections from a source of its own.
func (w *world) push(e *event) {
	switch {
	case e.rng != nil:
	case e.proc != nil || e.conn != nil:
		e.rng = w.net
	default:
		e.rng = w.rng
	}
	if e.seq == 0 {
		w.seq++
		e.seq = w.seq
	}
	heap.Push(&w.events, e)
}

// step runs the next event. What is due in a frozen process, or on a silent connection, keeps its order and is late.
func (w *world) step() bool {
	if len(w.events) == 0 || w.failed != nil {
		return false
	}
	e := heap.Pop(&w.events).(*event)
	w.now = e.at
	if e.conn != nil && e.conn.silent[e.end] > w.now {
		e.at = e.conn.silent[e.end]
		w.push(e)
		return true
	}
	if p := e.proc; p != nil {
		if !p.alive || p.life != e.life {
			return true
		}
		if p.frozen > w.now {
			e.at = p.frozen
			w.push(e)
			return true
		}
	}
	w.run(e)
	return true
}

// run lets an event happen. It ends early when a machine loses power in the middle of it.
func (w *world) run(e *event) {
	defer func() {
		switch x := recover().(type) {
		case nil:
		case powerLoss:
			for _, r := range w.replicas {
				if r.disk == x.s {
					w.cover.PowerCutsInside++
					r.powerCut(r.disk.rng)
				}
			}
		default:
			panic(x)
		}
	}()
	w.rng = e.rng
	e.do()
}

// source returns a source of random numbers for one concern of the run.
func (w *world) source(concern uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, concern)) }

// with draws from rng during do.
func (w *world) with(rng *rand.Rand, do func()) {
	was := w.rng
	w.rng = rng
	do()
	w.rng = was
}

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%9.3fms %s\n", float64(w.now)/1e6, fmt.Sprintf(format, args...))
	}
}

// fail ends the run.
func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf("at %.3fms: %s", float64(w.now)/1e6, fmt.Sprintf(format, args...))
		w.logf("FAILED %v", w.failed)
	}
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between returns a duration from lo to hi, small ones more often.
func (w *world) between(lo, hi time.Duration) time.Duration {
	f := w.rng.Float64()
	return lo + time.Duration(f*f*float64(hi-lo))
}

// Options of a run.
type Options struct {
	Seed  uint64
	Trace io.Writer     // nil: none
	Chaos time.Duration // for how long faults are injected; default 3 s
	// Only has the numbers of the faults that happen; nil: all of them.
	Only []int
}

func (o *Options) setDefaults() {
	if o.Chaos == 0 {
		o.Chaos = 3 * time.Second
	}
}

// The concerns of a run, each with its own source of random numbers, so that a change of one does not change the others.
const (
	concernRun = iota
	concernNet
	concernApp
	concernOperator
	concernFaults // and one for each kind behind it
	concernRecord = 900
	concernStages = 901
	concernHand   = 902
	concernStores = 1000
)

// Run lives through one seed. The error says which promise was broken.
func Run(o Options) (Coverage, error) {
	o.setDefaults()
	w := &world{
		trace: o.Trace, destroy: map[block.GUID]bool{}, opens: map[uint64]volume.EpochStart{}, seed: o.Seed,
		settings: volume.Settings{
			Deadline: 60 * ms, PingEvery: 15 * ms, Lease: 60 * ms, ClaimGrace: 30 * ms, LossyGrace: 100 * ms, HoldLimit: 1500 * ms, Backoff: 5 * ms,
		},
	}
	w.rng, w.net = w.source(concernRun), w.source(concernNet)
	if w.chance(0.3) {
		w.settings.RetainOps = 40
	}
	if w.chance(0.3) {
		w.settings.HoldLimit = 150 * ms
	}
	if w.chance(0.3) {
		w.settings.ClaimGrace = 2 * ms
	}
	if w.chance(0.3) {
		w.settings.LossyGrace = 10 * ms
	}
	if w.chance(0.3) {
		w.settings.Lease = 180 * ms
	}
	w.two = w.chance(0.3)
	factor := []int{1, 2, 3, 3, 3, 5}[w.rng.IntN(6)]
	w.operator.want = volume.Desired{Founding: factor, Factor: factor}
	w.record.rng = w.source(concernRecord)
	w.staging = w.source(concernStages)
	w.stages = w.staging.IntN(2) == 0
	w.with(w.record.rng, func() { w.operator.want.Witness = w.chance(0.65) })
	for range factor {
		w.after(w.between(0, 30*ms), nil, w.newReplica().start)
	}
	w.after(w.between(0, 30*ms), nil, w.startTarget)
	w.with(w.source(concernApp), func() { w.app.start(w) })
	w.with(w.source(concernOperator), w.reconcile)
	w.with(w.source(concernHand), w.deleteByHand)
	w.inject(o)
	w.after(o.Chaos, nil, func() { w.calmDown() })
	deadline := o.Chaos + 20*time.Second
	for w.now < deadline && !w.app.done && w.step() {
	}
	switch {
	case w.failed != nil:
	case w.app.done:
		w.finalCheck()
	default:
		w.fail("no progress after the faults stopped: %s", w.describe())
	}
	if w.target != nil {
		w.harvest(w.target)
	}
	w.cover.Runs = 1
	return w.cover, w.failed
}

// describe says what everything waits for.
func (w *world) describe() string {
	s := fmt.Sprintf("%d requests open", w.app.open)
	if w.target == nil {
		return s + ", no target"
	}
	st := w.target.core.Status()
	s += fmt.Sprintf(", serving %v, holding %q, removing %q, want %+v, adopted %+v, list %v pending %v", st.Serving, st.Holding, st.Removing, w.operator.want, st.Desired, st.Committed, st.Pending)
	for _, r := range st.Replicas {
		s += fmt.Sprintf("\n  %s member=%v mode=%d %s", short(r.GUID), r.Member, r.Mode, r.LastError)
	}
	for _, r := range w.replicas {
		rep := r.disk.report
		s += fmt.Sprintf("\n  disk %s last=%v %+v", r.name, rep.Last, rep.State)
	}
	return s
}

func short(g block.GUID) string { return fmt.Sprintf("r%d", g[0]) }
