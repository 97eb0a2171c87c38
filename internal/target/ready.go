package target

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// drain does what the core wants until it wants nothing more. t.mu is held.
func (t *Target) drain() {
	for {
		rd := t.core.Ready()
		if rd == nil {
			break
		}
		t.do(rd)
	}
	for _, s := range t.out.dirty {
		s.dirty = false
	}
}

func (t *Target) do(rd *volume.Ready) {
	for i := range rd.Sends {
		t.sendItem(&rd.Sends[i])
	}
	for _, c := range rd.Closes {
		if s := t.sessions[c.Session]; s != nil {
			t.log.Info("closing the connection of a replica", "replica", s.name, "session", c.Session, "reason", c.Reason)
			t.out.closes = append(t.out.closes, s) // after what is queued, which may say why
			delete(t.sessions, c.Session)
		}
	}
	if rd.Superseded {
		t.superseded()
	}
	for _, op := range rd.Completed {
		if st, ok := op.Tag.(*opState); ok {
			t.wrote(st.write, op.Err)
			st.write = nil
		}
	}
	for _, op := range rd.Released {
		if st, ok := op.Tag.(*opState); ok {
			st.Release()
		}
	}
	for _, r := range rd.Reads {
		t.sendRead(r.Session, r.Read)
	}
	for _, r := range rd.ReadsDone {
		t.readDone(r.Tag.(*readState))
	}
	for _, tag := range rd.Flushed {
		t.finish(tag.(*block.Request), nil)
	}
	for _, f := range rd.FlushHeld {
		r := f.Tag.(*block.Request)
		if f.Err == block.ErrLost {
			r.Told = func() { t.told(f.Lost) }
		}
		t.finish(r, f.Err)
	}
	if rd.Record != nil && !t.closed {
		op := *rd.Record
		t.tasks.Go(func() { t.recordOp(op) })
	}
	if rd.Restart != "" {
		t.restart(rd.Restart)
	}
	if rd.Status {
		t.hint()
	}
}

// hint says that Status has changed.
func (t *Target) hint() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// restart replaces a core that can go no further. The replicas connect again by themselves.
func (t *Target) restart(why string) {
	t.log.Warn("starting over", "reason", why)
	for id, s := range t.sessions {
		t.out.closes = append(t.out.closes, s)
		delete(t.sessions, id)
	}
	t.core = t.core.Successor(newNonce())
}

// superseded ends the requests that are not yet in the core, and the front end's sessions with what may still come from
// them.
func (t *Target) superseded() {
	t.log.Warn("another target has served the volume: ending the initiators' sessions")
	reading := t.partial[:0]
	for _, w := range t.partial {
		w.err = block.ErrSuperseded
		if w.started {
			reading = append(reading, w) // the core ends its reads
		} else {
			t.propose(0, w)
		}
	}
	clear(t.partial[len(reading):])
	t.partial = reading
	if t.cfg.DropSessions == nil || t.closed {
		return
	}
	if t.fences++; t.fences == 1 {
		t.tasks.Go(t.dropSessions)
	}
}

// dropSessions drops the front end's sessions as often as that was asked for, since new ones may have begun.
func (t *Target) dropSessions() {
	for more := true; more; {
		t.cfg.DropSessions()
		t.mu.Lock()
		t.fences--
		more = t.fences > 0
		t.mu.Unlock()
	}
	t.hint()
}

// sendItem puts one item into its session's stream.
func (t *Target) sendItem(item *volume.Send) {
	s := t.sessions[item.Session]
	if s == nil {
		return
	}
	t.send(s)
	if item.Message != nil {
		b, err := wire.AppendMessage(t.out.frame[:0], item.Message)
		if err != nil {
			t.log.Error("cannot encode a message", "error", err)
			s.out.Close()
			return
		}
		t.out.frame = b
		s.out.AppendCopy(b)
	}
	for _, op := range item.Ops {
		if st, ok := op.Tag.(*opState); ok {
			st.encode()
			st.retain()
			if op.Kind == volume.OpWrite {
				s.out.AppendTwo(st.head, op.Data, st)
			} else {
				s.out.Append(st.head, st)
			}
			continue
		}
		var b [wire.HeaderSize]byte // an operation of the core's own: no data
		wire.PutOp(b[:], op)
		s.out.AppendCopy(b[:])
	}
	if item.Flush != 0 {
		s.out.AppendHeader(wire.FlushMark(item.Flush))
	}
}

// finish hands a request back when the mutex is released.
func (t *Target) finish(r *block.Request, err error) {
	r.Err = err
	t.out.done = append(t.out.done, r)
}
