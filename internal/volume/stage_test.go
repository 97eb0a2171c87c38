package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
)

// run delivers until nothing is left, one frame of each stream in turn.
func (e *stage) run(names []string, until string) {
	if len(names) == 0 {
		names = slices.Collect(maps.Keys(e.members))
	}
	sort.Strings(names)
	for again := true; again; {
		again = false
		for _, n := range names {
			a := e.members[n]
			for _, q := range []*[]func(){&a.in, &a.out} {
				if frozen := e.frozen && a.core == e.aside; len(*q) > 0 && (!frozen || q == &a.in) {
					f := (*q)[0]
					*q = (*q)[1:]
					f()
					again = true
					if e.toldLast(until) {
						return
					}
				}
			}
			if a.pull != nil && e.doPull(a) {
				again = true
				if e.toldLast(until) {
					return
				}
			}
		}
	}
}

// toldLast reports whether the last line has text.
func (e *stage) toldLast(text string) bool {
	lines := strings.Split(strings.TrimSpace(e.out.String()), "\n")
	return text != "" && strings.Contains(lines[len(lines)-1], text)
}

// toTarget queues what a replica says.
func (a *actor) toTarget(e *stage, what string, f func()) {
	session := a.session
	a.out = append(a.out, func() {
		if a.core != nil && session == a.session {
			if what != "" {
				e.printf("%s: %s", a.name, what)
			}
			e.at(a.core, f)
		}
	})
}

func (e *stage) carryOut(a *actor, rd MemberReady) {
	if session := a.session; a.hung && rd.State != nil {
		a.after = append(a.after, func() {
			if session == a.session {
				rd.State = nil
				e.carryOut(a, rd)
			}
		})
		return
	}
	if rd.After > 0 {
		e.printf("%s: waits %v for the end of a lease", a.name, rd.After)
		a.wakeAt = e.now + rd.After
	}
	for _, m := range rd.Messages {
		session := a.session
		a.toTarget(e, e.text(m), func() { e.core.Step(e.now, session, m) })
	}
	if rd.Pull != nil {
		a.pull = rd.Pull
	}
	if rd.StopPull {
		a.pull = nil
	}
	if rd.Close != "" {
		e.printf("%s: closes: %s", a.name, rd.Close)
		a.in, a.out, a.pull = nil, nil, nil
		a.m.Disconnect(a.session)
		e.at(a.core, func() { e.core.Disconnect(e.now, a.session) })
	}
}

// at does something with a target, if it lives.
func (e *stage) at(core *Core, do func()) {
	if core == nil {
		return
	}
	was := e.core
	e.core = core
	do()
	e.ready()
	e.core = was
}

func (e *stage) ack(a *actor, stable bool) {
	n, session := a.m.Report().Last.N, a.session
	var s uint64
	what := fmt.Sprintf("ack %d", n)
	if stable && !a.hung {
		s = n
		what += " stable"
	}
	a.toTarget(e, what, func() { e.core.Ack(e.now, session, n, s) })
}

// operations is the shell of a replica.
func (e *stage) operations(a *actor, session SessionID, ops []Op) {
	stable := false
	for i := range ops {
		op := &ops[i]
		if op.Kind == OpOpen {
			rd := a.m.Open(session, op)
			e.carryOut(a, rd)
			stable = true
			continue
		}
		if err := a.m.Check(session, op.Version, 1); err != nil {
			e.carryOut(a, MemberReady{Close: err.Error()})
			return
		}
		c := content{version: op.Version, data: op.Tag.(string)}
		a.blocks[op.Block] = c
		a.m.Applied(op.Version)
		stable = stable || op.FUA
	}
	e.ack(a, stable)
}

func (e *stage) doPull(a *actor) bool {
	if a.hung {
		return false // it would be told only when it is stable
	}
	p, src := a.pull, e.members[a.pull.Source.Name]
	err := src.m.MayServe(p.Promise, p.From)
	if err == nil && src.damaged {
		err = errors.New("checksum mismatch")
	}
	switch {
	case err == ErrNotYet:
		return false
	case p.Stage && (err != nil || a.apart):
		a.pull = nil
		reason := "too much differs"
		if err != nil {
			reason = err.Error()
		}
		e.carryOut(a, a.m.StageFailed(p.Attempt, reason, err == nil))
		return true
	case err != nil:
		a.pull = nil
		e.carryOut(a, a.m.PullFailed(p.Attempt, err.Error()))
		return true
	}
	scan := src.m.Report().Last
	blocks := maps.Clone(a.blocks)
	all := maps.Clone(a.blocks)
	maps.Copy(all, src.blocks)
	for b := range all {
		local, listed := a.blocks[b].version, src.blocks[b].version
		switch r := block.Resolve(local, listed, scan); {
		case r == block.Take || p.Ambiguous && local == listed:
			blocks[b] = src.blocks[b]
		case r == block.Drop:
			delete(blocks, b)
		}
	}
	a.pull = nil
	if p.Stage {
		rd := a.m.Staged(p.Attempt, scan)
		if rd.State != nil {
			a.blocks = blocks
			e.printf("%s: becomes what %s is at %v", a.name, src.name, scan)
		}
		e.carryOut(a, rd)
		return true
	}
	a.blocks = blocks
	e.printf("%s: pulls from %s at %v", a.name, src.name, scan)
	e.carryOut(a, a.m.Rebuilt(p.Attempt))
	return true
}

func (e *stage) actorOf(id SessionID) *actor {
	for _, a := range e.members {
		if a.session == id {
			return a
		}
	}
	return nil
}

// expire lets all leases run out.
func (e *stage) expire() {
	e.now += LeaseTime
	e.wake()
}

// wake lets the members go on that have waited for as long as they wanted.
func (e *stage) wake() {
	for _, n := range slices.Sorted(maps.Keys(e.members)) {
		if a := e.members[n]; a.wakeAt != 0 && a.wakeAt <= e.now {
			a.wakeAt = 0
			e.carryOut(a, a.m.Wake(e.now, a.session))
		}
	}
}

// text is what is told of a message, "" if nothing is.
func (e *stage) text(m Message) string {
	switch m.(type) {
	case Ping, Pong:
		if !e.pings {
			return ""
		}
	}
	return text(m)
}

// ready is the shell of the target.
func (e *stage) ready() {
	for rd := e.core.Ready(); rd != nil; rd = e.core.Ready() {
		for _, s := range rd.Sends {
			e.send(s)
		}
		for _, x := range rd.Closes {
			if a := e.actorOf(x.Session); a != nil {
				e.printf("target closes %s: %s", a.name, x.Reason)
				a.in = append(a.in, func() {
					a.m.Disconnect(x.Session)
				})
			}
		}
		for _, op := range rd.Completed {
			e.printf("done: %v=%v %v", op.Block, op.Tag, errText(op.Err))
		}
		for _, s := range rd.Reads {
			e.sendRead(s)
		}
		for _, r := range rd.ReadsDone {
			e.printf("read: %d is %q %v", r.Block, *r.Tag.(*string), errText(r.Err))
		}
		for range rd.Flushed {
			e.printf("flushed")
		}
		if rd.Superseded {
			e.printf("superseded")
		}
		for _, f := range rd.FlushHeld {
			e.printf("flush: %v", f.Err)
			e.lost = f.Lost
		}
		if rd.Restart != "" {
			e.printf("restart: %s", rd.Restart)
		}
		if rd.Record != nil {
			e.recordOp(e.core, *rd.Record)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func (e *stage) send(s Send) {
	a := e.actorOf(s.Session)
	if a == nil {
		return
	}
	switch {
	case s.Message == Message(Release{}): // often the last before the session ends
		e.printf("target to %s: %s", a.name, text(s.Message))
		e.carryOut(a, a.m.Step(e.now, s.Session, s.Message))
	case s.Message != nil:
		a.in = append(a.in, func() {
			if what := e.text(s.Message); what != "" {
				e.printf("target to %s: %s", a.name, what)
			}
			e.carryOut(a, a.m.Step(e.now, s.Session, s.Message))
		})
	case s.Ops != nil:
		var ops []Op
		for _, op := range s.Ops {
			ops = append(ops, *op)
		}
		a.in = append(a.in, func() {
			e.printf("target to %s: operations %v to %v", a.name, ops[0].Version, ops[len(ops)-1].Version)
			e.operations(a, s.Session, ops)
		})
	default:
		a.in = append(a.in, func() {
			e.printf("target to %s: flush up to %d", a.name, s.Flush)
			e.ack(a, true)
		})
	}
}

func (e *stage) sendRead(s ReadSend) {
	a := e.actorOf(s.Session)
	if a == nil {
		return // it has another session, of which the target has not heard
	}
	a.in = append(a.in, func() {
		if err := a.m.MayRead(s.Session); err != nil {
			return
		}
		data := a.blocks[s.Read.Block].data
		a.toTarget(e, fmt.Sprintf("reads %q", data), func() {
			*s.Read.Tag.(*string) = data
			e.core.ReadReply(e.now, s.Session, s.Read, nil)
		})
	})
}
