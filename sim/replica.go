package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// replica is the process that serves one replica, with its disk.
type replica struct {
	process
	w      *world
	name   string
	disk   *store
	member *volume.Member
	conn   *conn
	pull   *pull
	stable uint64
	owed   time.Duration // when the last of the flushes under way ends
	states uint64        // records of state put into the log
	full   bool          // as the target was told
	down   time.Duration // its link to targets is down until then
	dark   bool          // its machine has no power
	boot   int           // counts those of its machine
	spoil  *rand.Rand    // if not nil, the device lies when the next block is read
}

func (w *world) newReplica() *replica {
	w.lastName++
	r := &replica{w: w, name: fmt.Sprintf("r%d", w.lastName)}
	s, err := newStore(w.seed, w.lastName, volume.Report{GUID: guid(w.lastName), Name: r.name, PullAddr: r.name, Stages: w.stages && w.staging.IntN(10) > 0, Paces: true})
	r.must(err)
	r.disk = s
	w.replicas = append(w.replicas, r)
	return r
}

// must ends the run when a pool does what it must not.
func (r *replica) must(err error) {
	if err != nil {
		r.w.fail("%s: %v", r.name, err)
	}
}

func (r *replica) start() {
	if r.alive || r.dark || r.w.destroy[r.disk.report.GUID] {
		return
	}
	if err := r.disk.open(); err != nil {
		r.must(err)
		return
	}
	if r.w.calm {
		r.must(r.disk.empty())
	}
	if st := r.disk.report.State; st.Started(fmt.Sprint(r.boot + 1)) {
		r.must(r.disk.put(st, r.disk.report.Last))
		r.must(r.disk.sync())
	}
	r.full = r.disk.full(false)
	r.owed = 0
	r.process.start(r.w)
	r.member = volume.NewMember(r.clock(r.w), r.disk.report, r.w.settings.Lease)
	r.w.logf("%s starts: last=%v complete=%v", r.name, r.disk.report.Last, r.disk.report.State.Complete)
	r.dial()
	r.work()
}

// work lets the pool do what it does in the background, and looks for room.
func (r *replica) work() {
	w := r.w
	w.after(w.between(0, 60*ms), &r.process, func() {
		for n := w.rng.IntN(3); n > 0 && r.disk.work(w.chance(0.3)); n-- {
			w.cover.Cycles++
		}
		r.tellSpace()
		r.work()
	})
}

// kill ends the process; its kernel closes its connections, unless the whole node is gone. Half of the time its pool is
// opened again afterwards; at other times the next process finds it as it is, which costs less and has to be the same.
func (r *replica) kill() {
	if !r.alive {
		return
	}
	r.w.logf("%s killed", r.name)
	r.end(0.7)
	if r.w.chance(0.5) {
		r.disk.leave()
	}
}

// reboot stops the process in good order, and starts its machine anew.
func (r *replica) reboot() {
	if !r.alive {
		return
	}
	r.w.logf("%s reboots", r.name)
	r.end(0.9)
	st := r.disk.report.State
	st.Stopped()
	r.must(r.disk.put(st, r.disk.report.Last))
	r.must(r.disk.sync())
	r.disk.leave()
	r.boot++
	r.w.cover.Reboots++
	r.w.after(r.w.between(0, 100*ms), nil, r.start)
}

// end ends the process, with a chance that the target hears of it.
func (r *replica) end(heard float64) {
	r.alive = false
	r.pull = nil
	if c := r.conn; c != nil {
		c.open[atReplica] = false
		if r.w.chance(heard) {
			c.hangup(atTarget)
		}
		r.conn = nil
	}
}

// powerCut takes the power of the machine away. What was not flushed is there afterwards, or not, or in part.
func (r *replica) powerCut(rng *rand.Rand) {
	if r.dark {
		return
	}
	fate := disk.Fate(rng.IntN(4))
	r.w.logf("%s loses power, unflushed writes: %d", r.name, fate)
	r.w.cover.PowerCuts++
	r.w.app.cuts = r.w.app.tick()
	r.end(0.2)
	r.disk.powerCut(fate, rng)
	r.dark = true
	r.boot++
	d := r.w.between(0, 100*ms)
	if r.w.chance(0.2) {
		d = r.w.between(0, 700*ms)
	}
	r.w.after(d, nil, func() {
		r.dark = false
		r.start()
	})
}

// dial connects to the target when there is one, and tries again later when not. A connection to an earlier target
// may still have frames in it.
func (r *replica) dial() {
	w := r.w
	retry := func() { w.after(w.between(2*ms, 25*ms), &r.process, r.dial) }
	if r.conn != nil {
		return
	}
	t := w.target
	if w.other != nil && !w.other.lasts && w.chance(0.5) {
		t = w.other
	}
	if t == nil || w.now < r.down {
		retry()
		return
	}
	if r.owed > w.now { // what it registers with is stable
		r.must(r.disk.sync())
		r.owed = 0
	}
	w.lastConn++
	c := &conn{w: w, id: w.lastConn, r: r, t: t, open: [2]bool{true, true}}
	r.conn = c
	t.conns[c.id] = c
	r.member.Connect(c.id)
	r.stable = 0
	r.pull = nil
	reg := volume.Register{Report: r.member.Report()}
	c.transmit(atTarget, func() { t.connect(c, reg) })
	if r.full {
		r.reply(c, volume.Space{Full: true})
	}
}

// newTarget makes the replica notice that its target was replaced, often before its old connection has ended.
func (r *replica) newTarget() {
	if c := r.conn; c != nil && c.t != r.w.target {
		r.conn = nil // frames of it that come now carry a session that is over
		r.dial()
	}
}

func (r *replica) disconnected(c *conn) {
	r.member.Disconnect(c.id)
	if r.conn == c {
		r.conn = nil
		r.pull = nil
		r.w.after(r.w.between(0, 10*ms), &r.process, r.dial)
	}
}

func (r *replica) reply(c *conn, m volume.Message) {
	c.transmit(atTarget, func() { c.t.step(c, m) })
}

// message takes a control message.
func (r *replica) message(c *conn, m volume.Message) {
	r.w.logf("%s <- %T %+v", r.name, m, m)
	r.do(c, r.member.Step(r.clock(r.w), c.id, m))
}

// do carries out what the member decided. What relies on state is said when that is stable, and nothing before what was to
// be said before it (replication rule 4).
func (r *replica) do(c *conn, rd volume.MemberReady) { r.doBy(c, rd, r.disk.put) }

// doBy is do with a way to put the state into the log.
func (r *replica) doBy(c *conn, rd volume.MemberReady, put func(volume.State, block.Version) error) {
	if rd.State != nil {
		if last := r.member.Report().Last; last != rd.Applied {
			r.w.fail("%s: state to be persisted with %v, the member has %v", r.name, rd.Applied, last)
		}
		if err := put(*rd.State, rd.Applied); errors.Is(err, block.ErrNoSpace) || errors.Is(err, pool.ErrTooLarge) {
			r.member = volume.NewMember(r.clock(r.w), r.disk.report, r.w.settings.Lease)
			r.close(c, err.Error())
			return
		} else if err != nil {
			r.must(err)
			return
		}
		r.disk.report = r.member.Report()
		r.stable = min(r.stable, rd.Applied.N)
		r.states++
	}
	if rd.After > 0 {
		r.w.cover.PromiseWaits++
		r.w.after(time.Duration(float64(rd.After)/r.rate)+1, &r.process, func() { r.do(c, r.member.Wake(r.clock(r.w), c.id)) })
	}
	for _, m := range rd.Messages {
		r.w.logf("%s -> %T %+v", r.name, m, m)
	}
	pong := len(rd.Messages) == 1 && rd.Messages[0] == volume.Message(volume.Pong{})
	if rd.State != nil || len(rd.Messages) > 0 && r.owed > r.w.now && !pong {
		r.flush(c, rd.Messages)
	} else {
		for _, m := range rd.Messages {
			r.reply(c, m)
		}
	}
	if rd.StopPull {
		r.pull = nil
	}
	if rd.Pull != nil {
		r.startPull(c, *rd.Pull)
	}
	if rd.Close != "" {
		r.close(c, rd.Close)
	}
}

func (r *replica) close(c *conn, why string) {
	r.w.logf("%s closes: %s", r.name, why)
	c.shut(atReplica)
	r.disconnected(c)
}

// operations applies ops, which the shell checked first.
func (r *replica) operations(c *conn, ops []volume.Op) {
	fua := false
	for len(ops) > 0 {
		if op := &ops[0]; op.Kind == volume.OpOpen {
			rd := r.member.Open(c.id, op)
			if rd.Close == "" {
				r.w.opened(r, *op.Open)
			}
			r.do(c, rd)
			if rd.Close != "" {
				return
			}
			ops = ops[1:]
			continue
		}
		n := 1
		for n < len(ops) && ops[n].Kind != volume.OpOpen {
			n++
		}
		if err := r.member.Check(c.id, ops[0].Version, n); err != nil {
			if r.conn != c {
				r.w.cover.OldFrames++
			}
			r.close(c, err.Error())
			return
		}
		if err := r.disk.apply(ops[:n]); err != nil {
			if !errors.Is(err, block.ErrNoSpace) {
				r.must(err)
			}
			r.close(c, err.Error())
			return
		}
		r.member.Applied(ops[n-1].Version)
		for i := range ops[:n] {
			fua = fua || ops[i].FUA
		}
		ops = ops[n:]
	}
	if fua {
		r.flush(c, nil)
	}
	r.w.after(r.w.between(0, ms/2), &r.process, func() { r.ack(c) })
}

// flush makes everything stable that was applied, after a while, and then says so and what else is to be said. The device
// may have done it long before anybody hears of it.
func (r *replica) flush(c *conn, messages []volume.Message) {
	w := r.w
	n, states, early := r.disk.report.Last.N, r.states, w.chance(0.5)
	if early {
		r.must(r.disk.sync())
	}
	r.owed = max(r.owed, w.now+w.between(0, 3*ms))
	w.after(r.owed-w.now, &r.process, func() {
		if !early {
			r.must(r.disk.sync())
		}
		if r.conn != c {
			return
		}
		if r.states == states { // else n may be of what the replica was before
			r.stable = max(r.stable, n)
		}
		r.ack(c)
		for _, m := range messages {
			r.reply(c, m)
		}
	})
}

func (r *replica) ack(c *conn) {
	if r.conn != c {
		return
	}
	a := ackFrame{applied: r.disk.report.Last.N, stable: min(r.stable, r.disk.report.Last.N)}
	c.transmit(atTarget, func() { c.t.ack(c, a) })
}

// read answers a read. A target never sends one to a replica that is not complete.
func (r *replica) read(c *conn, f readFrame) {
	if r.member.MayRead(c.id) != nil {
		return // of a session that is over
	}
	if !r.disk.report.State.Complete {
		r.w.fail("%s: read from a replica that is not complete", r.name)
	}
	reply := readReply{r: f.r}
	r.lie(func() { reply.data, reply.err = r.disk.read(f.block, f.count) })
	if reply.err != nil && !errors.Is(reply.err, pool.ErrChecksum) {
		r.must(reply.err)
	}
	c.transmit(atTarget, func() { c.t.readReply(c, reply) })
}

// lie calls read with a device that lies, if it is to.
func (r *replica) lie(read func()) {
	r.disk.dev.spoil, r.spoil = r.spoil, nil
	read()
	if d := r.disk.dev; d.spoil != nil { // nothing was read
		r.spoil, d.spoil = d.spoil, nil
	}
}

// tellSpace tells the target whether the pool is full, when that has changed.
func (r *replica) tellSpace() {
	full := r.disk.full(r.full)
	if full == r.full {
		return
	}
	r.full = full
	if r.conn != nil {
		r.reply(r.conn, volume.Space{Full: full})
	}
}
