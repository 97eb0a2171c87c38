package sim

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// target is a target process: the shell around a core.
type target struct {
	process
	w      *world
	core   *volume.Core
	conns  map[volume.SessionID]*conn
	status volume.Status
	served bool // this core has
	logins bool // a front end had sessions, since it has served
	ending bool // in good order
	split  bool // cut off from those that go to its successor
	lasts  bool // it is not ended, but nobody finds it any more
	apart  bool // it does not find the record either
	open   int  // requests of the application
}

// startTarget starts a target unless there is one; only secondTarget leaves another beside it.
func (w *world) startTarget() {
	if w.target != nil {
		return
	}
	t := &target{w: w, conns: map[volume.SessionID]*conn{}}
	t.start(w)
	t.core = volume.NewCore(w.rng.Uint64(), blocks*block.Size, w.settings, w.operator.want)
	w.target = t
	w.logf("target starts, wants %+v", w.operator.want)
	t.tick()
	for _, r := range w.replicas {
		if r.alive && w.chance(0.7) && (w.other == nil || !w.other.split) {
			w.after(w.between(0, 10*ms), &r.process, r.newTarget)
		}
	}
}

// secondTarget leaves the target to itself, often frozen for a moment or without hearing of some of its replicas, and starts
// another. The application uses both; each replica that connects anew may reach either, until the old one ends. One that
// lasts is cut off from Kubernetes: nobody ends it, and nobody finds it any more; it keeps what it has, and all must be well
// in the end all the same.
func (w *world) secondTarget() {
	t := w.target
	if !w.two || t == nil || w.other != nil || !t.logins {
		return
	}
	w.logf("target is left aside")
	w.cover.SecondTargets++
	w.other, w.target = t, nil
	if w.chance(0.4) {
		w.freeze(&t.process, w.between(0, 300*ms))
	}
	if t.split = w.chance(0.7); t.split {
		ids := sortedConns(t.conns)
		stays := w.rng.IntN(len(ids) + 1) // one has not heard of anything, if there is more than one
		for i, id := range ids {
			if c := t.conns[id]; i != stays && w.chance(0.8) {
				c.hush(w.between(20*ms, 300*ms))
				leave := c.r.newTarget
				if w.chance(0.3) {
					leave = func() { w.bounce(c.r) }
				}
				w.after(w.between(0, 30*ms), &c.r.process, leave)
			}
		}
	}
	w.after(w.between(0, 20*ms), nil, w.startTarget)
	if t.lasts = t.split && w.chance(0.3); t.lasts {
		w.cover.LastingTargets++
		t.core.CutOff(t.clock(w), true)
		t.apart = w.chance(0.5)
		return
	}
	if w.chance(0.15) {
		t.stop()
	}
	w.after(w.between(100*ms, 1500*ms), nil, func() {
		if w.other == t {
			t.end()
		}
	})
}

// stop lets the target end in good order: it says that it shows nothing any more. Its process is still there.
func (t *target) stop() {
	t.w.logf("target stops")
	t.ending = true
	t.core.Stop(t.clock(t.w))
	t.ready()
}

// end ends the target, sometimes in good order.
func (t *target) end() {
	w := t.w
	if t.ending || !w.chance(0.4) {
		t.kill()
		return
	}
	t.stop()
	w.after(w.between(0, 40*ms), nil, func() {
		t.kill()
		w.after(w.between(0, 60*ms), nil, w.startTarget)
	})
}

// kill ends the target. What it sent still arrives, followed by the end of the connection.
func (t *target) kill() {
	w := t.w
	if !t.alive {
		return
	}
	w.logf("target killed")
	w.harvest(t)
	t.alive = false
	for _, id := range sortedConns(t.conns) {
		c := t.conns[id]
		c.open[atTarget] = false
		c.hangup(atReplica)
	}
	if w.other == t {
		w.other = nil
	} else {
		w.target = nil
	}
	w.app.targetDied(t)
}

func sortedConns(m map[volume.SessionID]*conn) (ids []volume.SessionID) {
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (t *target) tick() {
	t.core.Tick(t.clock(t.w))
	t.ready()
	t.w.after(t.w.settings.PingEvery/2, &t.process, t.tick)
}

func (t *target) connect(c *conn, m volume.Register) {
	t.core.Connect(t.clock(t.w), c.id, m)
	t.ready()
}

func (t *target) disconnected(c *conn) {
	delete(t.conns, c.id)
	t.core.Disconnect(t.clock(t.w), c.id)
	t.ready()
}

func (t *target) step(c *conn, m volume.Message) {
	t.core.Step(t.clock(t.w), c.id, m)
	t.ready()
}

func (t *target) ack(c *conn, a ackFrame) {
	t.core.Ack(t.clock(t.w), c.id, a.applied, a.stable)
	t.ready()
}

func (t *target) readReply(c *conn, a readReply) {
	if a.err == nil {
		a.r.Tag.(*request).got = a.data
	}
	t.core.ReadReply(t.clock(t.w), c.id, a.r, a.err)
	t.ready()
}

// ready does what the core asks for.
func (t *target) ready() {
	for rd := t.core.Ready(); rd != nil; rd = t.core.Ready() {
		for _, s := range rd.Sends {
			t.send(s)
		}
		for _, x := range rd.Closes {
			t.w.logf("target closes %d: %s", x.Session, x.Reason)
			if c := t.conns[x.Session]; c != nil {
				delete(t.conns, x.Session)
				c.shut(atTarget)
			}
		}
		for _, s := range rd.Reads {
			if c := t.conns[s.Session]; c != nil {
				f := readFrame{r: s.Read, block: s.Read.Block, count: uint64(s.Read.Count)}
				c.transmit(atReplica, func() { c.r.read(c, f) })
			}
		}
		for _, op := range rd.Completed {
			r := op.Tag.(*request)
			r.version, r.fua = op.Version, op.FUA
			t.w.app.completed(r, op.Err)
		}
		for _, op := range rd.Released {
			t.w.app.released(op.Tag.(*request))
		}
		for _, r := range rd.ReadsDone {
			t.w.app.read(r.Tag.(*request), r.Err)
		}
		for _, tag := range rd.Flushed {
			t.w.app.completed(tag.(*request), nil)
		}
		for _, f := range rd.FlushHeld {
			if f.Err == block.ErrLost {
				t.w.app.failed(f.Tag.(*request), f.Lost)
				continue
			}
			t.w.app.completed(f.Tag.(*request), f.Err)
		}
		if rd.Record != nil {
			t.recordOp(*rd.Record)
		}
		status, restart := rd.Status, rd.Restart
		if restart != "" {
			t.restart(restart)
		}
		if status {
			t.observe()
		}
	}
}

func (t *target) restart(why string) {
	w := t.w
	w.logf("target restarts: %s", why)
	w.cover.Restarts++
	w.harvest(t)
	for _, id := range sortedConns(t.conns) {
		t.conns[id].shut(atTarget)
	}
	clear(t.conns)
	for _, r := range w.app.requests {
		r.again = r.again || r.t == t
	}
	t.core = t.core.Successor(w.rng.Uint64())
	t.served = false
}

func (t *target) send(s volume.Send) {
	c := t.conns[s.Session]
	if c == nil {
		return
	}
	switch {
	case s.Message != nil:
		m := s.Message
		c.transmit(atReplica, func() { c.r.message(c, m) })
		t.w.meddle(c, m)
	case s.Ops != nil:
		ops := make([]volume.Op, len(s.Ops))
		for i, op := range s.Ops {
			if op.Kind != volume.OpOpen && op.Tag.(*request).state == reqReleased {
				t.w.fail("operation %v is sent after it was released", op.Version)
			}
			ops[i] = *op
		}
		c.transmit(atReplica, func() {
			for i := range ops {
				if r, ok := ops[i].Tag.(*request); ok && r.state == reqReleased && t.alive && t.conns[c.id] == c {
					t.w.fail("operation %v was released and is still under way", ops[i].Version)
				}
			}
			c.r.operations(c, ops)
		})
	default:
		c.transmit(atReplica, func() { c.r.flush(c, nil) })
	}
}

// observe is what the control plane and the checks see of the target.
func (t *target) observe() {
	w := t.w
	if t != w.target || t.ending {
		return // nobody looks at it
	}
	old := t.status
	t.status = t.core.Status()
	st := t.status
	if st.Serving && !t.served {
		t.served, t.logins = true, true
		w.cover.Takeovers++
	}
	if st.Serving && st.Epoch >= w.shown.Epoch {
		w.shown = st
	}
	if !st.Serving && st.Holding == "" {
		w.fail("target holds and does not say why")
	}
	for _, g := range st.Committed.Members {
		if w.destroy[g] {
			w.fail("destroyed replica %s is in the committed list %v", short(g), st.Committed)
		}
	}
	if st.Pending == nil && len(st.Committed.Members) > 0 && old.Committed.Epoch == st.Committed.Epoch && len(st.Committed.Members) < len(old.Committed.Members) {
		healthy := 0
		for _, r := range st.Replicas {
			if r.Member && r.Mode == volume.Healthy {
				healthy++
			}
		}
		if healthy < st.Committed.Quorum() {
			w.fail("removal left %d healthy members of %v", healthy, st.Committed)
		}
	}
	for _, r := range st.Replicas {
		if d := w.replica(r.GUID); !w.two && r.Mode == volume.Healthy && (d == nil || !d.disk.report.State.Complete) {
			w.fail("%s is shown healthy and is not complete", short(r.GUID))
		}
	}
	if w.trace != nil {
		s := fmt.Sprintf("status serving=%v epoch=%d last=%d list=%d.%d%v pending=%v", st.Serving, st.Epoch, st.Last, st.Committed.Epoch, st.Committed.Generation, shorts(st.Committed.Members), st.Pending)
		for _, r := range st.Replicas {
			s += fmt.Sprintf(" %s:%d@%d", short(r.GUID), r.Mode, r.Applied)
		}
		w.logf("%s %s", s, st.Holding)
	}
}

func shorts(gs []block.GUID) (s []string) {
	for _, g := range gs {
		s = append(s, short(g))
	}
	return s
}
