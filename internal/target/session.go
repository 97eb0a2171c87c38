package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

const (
	registerTimeout = 5 * time.Second
)

var errNoData = errors.New("the replica's reply had no data")

// session is one connection of a replica. The core decides what it means; here it is a stream with an outbox.
type session struct {
	id   volume.SessionID
	name string // of the replica, for people
	conn *net.TCPConn
	out  *wire.Outbox

	// Under the target's mutex.
	dirty bool         // in Target.out.dirty
	slots []*readState // reads that wait for a reply, nil when given up
	gens  []uint32     // how often a slot was used
	free  []uint32
}

// A read's tag is its slot and, above that, how often the slot was used, so that a late reply is told apart.
const (
	slotBits = 20
	slotMask = 1<<slotBits - 1
)

func (s *session) addRead(r *readState) (tag uint32) {
	var slot uint32
	if n := len(s.free); n > 0 {
		slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		slot = uint32(len(s.slots))
		s.slots, s.gens = append(s.slots, nil), append(s.gens, 0)
	}
	s.slots[slot] = r
	return slot | s.gens[slot]<<slotBits
}

// dropRead forgets a read. Its slot is used again at once: a late reply carries the old tag.
func (s *session) dropRead(tag uint32) {
	if slot := tag & slotMask; s.slots[slot] != nil && s.gens[slot] == tag>>slotBits {
		s.slots[slot] = nil
		s.gens[slot] = (s.gens[slot] + 1) & (1<<(32-slotBits) - 1)
		s.free = append(s.free, slot)
	}
}

func (s *session) read(tag uint32) *readState {
	slot := tag & slotMask
	if int(slot) >= len(s.slots) || s.gens[slot] != tag>>slotBits {
		return nil
	}
	return s.slots[slot]
}

// event is one thing that a replica said, decoded and verified before the mutex is taken.
type event struct {
	message volume.Message // or
	read    bool           // a reply to tag; otherwise an acknowledgement
	tag     uint32
	data    []byte
	buf     *block.Buffer
	err     error
	applied uint64
	stable  uint64
}

// serve runs one replica's connection until it ends.
func (t *Target) serve(conn *net.TCPConn) {
	defer conn.Close()
	if err := wire.Tune(conn); err != nil {
		t.log.Warn("cannot tune a replica's connection", "peer", conn.RemoteAddr(), "error", err)
	}
	stop := context.AfterFunc(t.ctx, func() { conn.Close() }) // registered or not
	defer stop()
	r := wire.NewReader(conn)
	defer r.Close()
	conn.SetReadDeadline(time.Now().Add(registerTimeout))
	reg, err := readRegister(r)
	if err != nil {
		t.log.Warn("connection without registration", "peer", conn.RemoteAddr(), "error", err)
		return
	}
	conn.SetReadDeadline(time.Time{})
	out, err := wire.NewOutbox(conn, outboxLimit)
	if err != nil {
		t.log.Warn("cannot use a replica's connection", "peer", conn.RemoteAddr(), "error", err)
		return
	}
	defer out.Close()
	s := &session{name: reg.Report.Name, conn: conn, out: out}
	now := t.enter()
	if t.closed {
		t.leave()
		return
	}
	t.lastID++
	s.id = t.lastID
	t.sessions[s.id] = s
	t.core.Connect(now, s.id, reg)
	t.leave()
	t.log.Info("replica connected", "replica", s.name, "session", s.id, "peer", conn.RemoteAddr(), "last", reg.Report.Last)

	err = t.receive(s, r)
	if sent := out.Err(); sent != nil && !errors.Is(sent, net.ErrClosed) {
		err = sent
	}
	now = t.enter()
	if t.sessions[s.id] == s { // else the core has closed it
		delete(t.sessions, s.id)
		t.log.Info("replica disconnected", "replica", s.name, "session", s.id, "error", err)
		t.core.Disconnect(now, s.id)
	}
	t.leave()
}

// readRegister waits for a replica's first message.
func readRegister(r *wire.Reader) (reg volume.Register, err error) {
	for {
		f, ok, err := r.Next()
		if err != nil {
			return reg, err
		}
		if ok {
			m, err := f.Message()
			if err != nil {
				return reg, err
			}
			reg, ok := m.(volume.Register)
			if !ok {
				return reg, fmt.Errorf("first message is %T", m)
			}
			return reg, nil
		}
		if err := r.Fill(); err != nil {
			return reg, err
		}
	}
}

// receive feeds what a replica says into the core, all that one read brought at a time.
func (t *Target) receive(s *session, r *wire.Reader) error {
	var events []event
	for {
		if err := r.Fill(); err != nil {
			return err
		}
		events = events[:0]
		for {
			f, ok, err := r.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if events, err = appendEvent(events, &f, r); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			continue
		}
		now := t.enter()
		for i := range events {
			t.take(now, s, &events[i])
		}
		t.leave()
		clear(events)
	}
}

// appendEvent decodes a frame. Acknowledgements are cumulative, so that neighbours become one that says what both say: a
// replica's stream and its flusher both send them, so that the later one may be the older.
func appendEvent(events []event, f *wire.Frame, r *wire.Reader) ([]event, error) {
	switch f.Type {
	case wire.TypeAck:
		applied, stable := f.Ack()
		if n := len(events); n > 0 && events[n-1].message == nil && !events[n-1].read {
			e := &events[n-1]
			e.applied, e.stable = max(e.applied, applied), max(e.stable, stable)
			return events, nil
		}
		return append(events, event{applied: applied, stable: stable}), nil
	case wire.TypeReadReply:
		e := event{read: true, tag: f.Tag}
		if e.data, e.err = f.ReadReply(); e.err == nil {
			e.buf = r.Retain()
		}
		return append(events, e), nil
	case wire.TypeMessage:
		m, err := f.Message()
		if err != nil {
			return events, err
		}
		return append(events, event{message: m}), nil
	}
	return events, fmt.Errorf("%w: unexpected %v from a replica", wire.ErrFormat, f.Type)
}

// take feeds one event into the core. t.mu is held.
func (t *Target) take(now time.Duration, s *session, e *event) {
	if t.sessions[s.id] != s { // closed by the core
		e.buf.Release()
		return
	}
	switch {
	case e.message != nil:
		t.core.Step(now, s.id, e.message)
	case e.read:
		rs := s.read(e.tag)
		if rs == nil {
			e.buf.Release()
			return
		}
		s.dropRead(e.tag)
		rs.session = nil
		if e.err == nil && len(e.data) != int(rs.op.Count)*block.Size {
			e.err = errNoData
		}
		rs.data, rs.buf = e.data, e.buf
		t.core.ReadReply(now, s.id, &rs.op, e.err)
	default:
		t.core.Ack(now, s.id, e.applied, e.stable)
	}
}
