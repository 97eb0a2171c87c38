package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// replica is the process that serves one replica, with its disk.
type replica struct {
	process
	w      *world
	name   string
	disk   *disk
	member *volume.Member
	conn   *conn
	pull   *pull
	stable uint64
	full   bool
	down   time.Duration // its link to targets is down until then
}

var errDamaged = errors.New("checksum mismatch")

func (w *world) newReplica() *replica {
	w.lastName++
	r := &replica{w: w, name: fmt.Sprintf("r%d", w.lastName)}
	r.disk = newDisk(volume.Report{GUID: guid(w.lastName), Name: r.name, PullAddr: r.name})
	w.replicas = append(w.replicas, r)
	return r
}

func (r *replica) start() {
	if r.alive || r.w.destroy[r.disk.report.GUID] {
		return
	}
	r.process.start(r.w)
	r.member = volume.NewMember(r.clock(r.w), r.disk.report, r.w.settings.Lease)
	r.w.logf("%s starts: last=%v complete=%v", r.name, r.disk.report.Last, r.disk.report.State.Complete)
	r.dial()
}

// kill ends the process; its kernel closes its connections, unless the whole node is gone.
func (r *replica) kill() {
	if !r.alive {
		return
	}
	r.w.logf("%s killed", r.name)
	r.alive = false
	r.pull = nil
	if c := r.conn; c != nil {
		c.open[atReplica] = false
		if r.w.chance(0.7) {
			c.hangup(atTarget)
		}
		r.conn = nil
	}
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
	if w.other != nil && w.chance(0.5) {
		t = w.other
	}
	if t == nil || w.now < r.down {
		retry()
		return
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

// do carries out what the member decided.
func (r *replica) do(c *conn, rd volume.MemberReady) {
	if rd.State != nil {
		r.disk.report = r.member.Report()
		r.disk.report.State = *rd.State
		if r.disk.report.Last != rd.Applied {
			r.w.fail("%s: state to be persisted with %v, pool has %v", r.name, rd.Applied, r.disk.report.Last)
		}
	}
	if rd.After > 0 {
		r.w.cover.PromiseWaits++
		r.w.after(time.Duration(float64(rd.After)/r.rate)+1, &r.process, func() { r.do(c, r.member.Wake(r.clock(r.w), c.id)) })
	}
	for _, m := range rd.Messages {
		r.w.logf("%s -> %T %+v", r.name, m, m)
		r.reply(c, m)
	}
	if rd.StopPull {
		r.pull = nil
	}
	if rd.Pull != nil {
		clear(r.disk.live)
		r.startPull(c, *rd.Pull)
	}
	if rd.Close != "" {
		r.w.logf("%s closes: %s", r.name, rd.Close)
		c.shut(atReplica)
		r.disconnected(c)
	}
}

// operations applies ops, which the shell checked first.
func (r *replica) operations(c *conn, ops []volume.Op) {
	fua := false
	for i := range ops {
		op := &ops[i]
		if op.Kind == volume.OpOpen {
			rd := r.member.Open(c.id, op)
			r.do(c, rd)
			if rd.Close != "" {
				return
			}
			fua = true
			continue
		}
		if err := r.member.Check(c.id, op.Version, 1); err != nil {
			if r.conn != c {
				r.w.cover.OldFrames++
			}
			r.do(c, volume.MemberReady{Close: err.Error()})
			return
		}
		r.disk.apply(op)
		r.disk.report.Last = op.Version
		r.member.Applied(op.Version)
		fua = fua || op.FUA
	}
	n := r.disk.report.Last.N
	if fua {
		r.flush(c, n)
	}
	r.w.after(r.w.between(0, ms/2), &r.process, func() { r.ack(c) })
}

// flush makes everything up to n stable, after a while.
func (r *replica) flush(c *conn, n uint64) {
	r.w.after(r.w.between(0, 3*ms), &r.process, func() {
		if r.conn == c {
			r.stable = max(r.stable, n)
			r.ack(c)
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
	if !r.w.calm && r.w.chance(0.005) {
		reply.err = errDamaged
	}
	for b := f.block; b < f.block+f.count; b++ {
		reply.data = append(reply.data, r.disk.cells[b].content)
	}
	c.transmit(atTarget, func() { c.t.readReply(c, reply) })
}

// pull is a rebuild's copy under way.
type pull struct {
	volume.Pull
	conn *conn
	todo []uint64
}

func (w *world) replica(g block.GUID) *replica {
	for _, r := range w.replicas {
		if r.disk.report.GUID == g {
			return r
		}
	}
	return nil
}

func (r *replica) startPull(c *conn, p volume.Pull) {
	r.pull = &pull{Pull: p, conn: c}
	r.w.cover.Pulls++
	if !p.Base.IsZero() {
		r.w.cover.DeltaPulls++
	}
	r.ask(r.pull, func(src *replica) func() {
		theirs := src.disk.changed(p.Base)
		return func() {
			for i := range r.disk.changed(p.Base) {
				theirs[i] = true
			}
			for i := range uint64(blocks / chunkBlocks) {
				if theirs[i] {
					r.pull.todo = append(r.pull.todo, i)
				}
			}
			r.nextChunk(r.pull)
		}
	})
}

// nextChunk pulls one chunk after the other.
func (r *replica) nextChunk(p *pull) {
	if len(p.todo) == 0 {
		r.w.after(r.w.between(0, 5*ms), &r.process, func() {
			if r.pull == p {
				r.do(p.conn, r.member.Rebuilt(p.Attempt))
			}
		})
		return
	}
	i := p.todo[0]
	r.ask(p, func(src *replica) func() {
		c := src.disk.list(i)
		return func() {
			p.todo = p.todo[1:]
			r.disk.merge(c)
			r.nextChunk(p)
		}
	})
}

// ask sends a request of p to its source, and takes the answer if the pull is still the current one. It asks again
// when the source is not ready yet, and gives up when the source refuses or is not heard.
func (r *replica) ask(p *pull, at func(src *replica) func()) {
	w := r.w
	failed := func(why string) {
		w.after(w.between(0, 20*ms), &r.process, func() {
			if r.pull == p {
				r.do(p.conn, r.member.PullFailed(p.Attempt, why))
			}
		})
	}
	delay := func() time.Duration { return w.between(100*time.Microsecond, 4*ms) }
	w.after(delay(), &r.process, func() {
		src := w.replica(p.Source.GUID)
		if r.pull != p {
			return
		}
		if src == nil || !src.alive || src.frozen > w.now+30*ms || !w.calm && w.chance(0.01) {
			failed("source does not answer")
			return
		}
		w.after(delay(), &src.process, func() {
			switch err := src.member.MayServe(p.Promise, p.From); {
			case errors.Is(err, volume.ErrNotYet):
				w.cover.NotYet++
				w.after(5*ms, &r.process, func() {
					if r.pull == p {
						r.ask(p, at)
					}
				})
			case err != nil:
				failed(err.Error())
			default:
				if !src.disk.report.State.Complete {
					w.fail("%s serves a pull and is not complete", src.name)
				}
				take := at(src)
				w.after(delay(), &r.process, func() {
					if r.pull == p {
						take()
					}
				})
			}
		})
	})
}

// spaceChanged tells the target whether the pool is full.
func (w *world) spaceChanged(r *replica) {
	if c := r.conn; c != nil && r.alive {
		r.reply(c, volume.Space{Full: r.full})
	}
}
