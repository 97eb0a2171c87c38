package iscsi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// session is one session in full feature phase, which is one connection. Its reader goroutine parses and submits;
// the device's goroutines complete. What both touch is guarded by out's lock.
type session struct {
	srv       *Server
	nc        net.Conn
	log       *slog.Logger
	par       pdu.Params
	initiator string
	isid      [6]byte
	tsih      uint16
	discovery bool
	since     time.Time
	done      chan struct{} // closed when the reader has ended: it submits nothing any more

	lastRx atomic.Int64  // when something came from the initiator, Unix nanoseconds
	probed atomic.Int64  // when the ping was sent that must be answered; 0: none
	urgent atomic.Bool   // another initiator is waiting for the answer
	maxSN  atomic.Uint32 // MaxCmdSN as told to the initiator; written under the lock
	drop   atomic.Bool   // shutting down: commands are ignored
	tells  atomic.Bool   // telling is not empty; written under the lock

	// The reader's own.
	in         *pdu.Reader
	rxSN       uint32  // CmdSN that comes next
	fresh      []*task // parsed, not yet submitted, in CmdSN order
	batch      []*block.Request
	collecting []*task // writes whose data has not all come
	transfers  uint32  // makes target transfer tags unique
	text       []byte  // continued text request

	out *pdu.Sender
	// Guarded by out's lock.
	expSN     uint32 // ExpCmdSN: rxSN as of the last time that the reader held the lock
	statSN    uint32
	inFlight  int   // commands without response
	bytes     int64 // of the commands admitted
	tasks     taskList
	free      []*task
	waiting   []*task // commands that wait until fewer bytes are in flight, in order
	admitting bool    // a goroutine is taking care of waiting
	attn      []scsi.Sense
	telling   []telling
	idle      []chan struct{} // closed when there is no task
	ended     bool            // the connection is gone
}

// telling is what is to be called when the initiator has the response with that StatSN.
type telling struct {
	statSN uint32
	told   func()
}

const (
	maxQueued    = 16 << 20 // bytes of answers that may wait for a slow initiator before its requests wait too
	maxImmediate = 64       // commands for immediate delivery beyond the window
	maxTelling   = 64       // responses whose acknowledgement is waited for; of more nobody is told, which is as if it had not come
)

func newSession(l *loginState, log *slog.Logger) (*session, error) {
	out, err := pdu.NewSender(l.c, &l.neg.par)
	if err != nil {
		return nil, err
	}
	ss := &session{
		srv: l.srv, nc: l.c, par: l.neg.par, initiator: l.neg.initiator, isid: l.isid,
		log: log.With("initiator", l.neg.initiator), discovery: l.neg.discovery, since: time.Now(),
		done: make(chan struct{}), rxSN: l.cmdSN, expSN: l.cmdSN, statSN: l.stat, out: out,
		attn: []scsi.Sense{scsi.PowerOn},
	}
	ss.maxSN.Store(l.cmdSN + uint32(l.srv.cfg.Depth) - 1)
	ss.lastRx.Store(time.Now().UnixNano())
	return ss, nil
}

func (ss *session) info() SessionInfo {
	ss.out.Lock()
	defer ss.out.Unlock()
	return SessionInfo{ss.initiator, ss.isid, ss.nc.RemoteAddr().String(), ss.since, ss.inFlight}
}

// run is the reader: it returns when the connection has ended.
func (ss *session) run() {
	if t, ok := ss.nc.(*net.TCPConn); ok {
		t.SetNoDelay(true)
	}
	ss.in = pdu.NewReader(ss.nc, &ss.par)
	ss.in.Place = ss.placeData
	if !ss.discovery {
		ss.log.Info("iscsi: session begins", "parameters", fmt.Sprintf("%+v", ss.par))
	}
	err := ss.read()
	ss.nc.Close()
	ss.teardown()
	ss.srv.unregister(ss)
	close(ss.done)
	if !ss.discovery {
		ss.log.Info("iscsi: session ends", "why", err)
	}
}

var (
	errLogout    = errors.New("logged out")
	errColdReset = errors.New("target cold reset")
)

// read takes everything that each read of the socket brings, then submits and answers it at once.
func (ss *session) read() error {
	for {
		ok, err := ss.in.Next()
		if ok && err == nil {
			err = ss.handle(&ss.in.Header, ss.in.Data)
		} else if errors.Is(err, pdu.ErrDataDigest) {
			ss.reject(&ss.in.Header, pdu.RejectDataDigest)
		}
		if err != nil {
			ss.submit()
			if err == errLogout || err == errColdReset {
				ss.out.WaitBelow(1) // the answer is on its way; the keeper ends a wait for a dead peer
			}
			return err
		}
		if ok {
			continue
		}
		ss.submit()
		ss.out.WaitBelow(maxQueued)
		if err := ss.in.Fill(); err != nil {
			if err == io.EOF {
				return errors.New("initiator closed the connection")
			}
			return err
		}
		ss.lastRx.Store(time.Now().UnixNano())
	}
}

// handle dispatches one PDU. An error ends the connection.
func (ss *session) handle(h *pdu.Header, data []byte) error {
	if ss.tells.Load() {
		ss.acknowledged(h.ExpStatSN())
	}
	switch op := h.Opcode(); op {
	case pdu.DataOut:
		return ss.dataOut(h, data)
	case pdu.Command, pdu.NopOut, pdu.TaskMgmt, pdu.TextReq, pdu.LogoutReq:
		if ss.discovery && op != pdu.TextReq && op != pdu.LogoutReq && op != pdu.NopOut {
			return ss.protocolError(h, pdu.RejectProtocolError, "not in a discovery session")
		}
		if take, err := ss.sequence(h); !take || err != nil {
			return err
		}
		switch op {
		case pdu.Command:
			return ss.command(h, data)
		case pdu.NopOut:
			return ss.nopOut(h, data)
		case pdu.TaskMgmt:
			return ss.taskManagement(h)
		case pdu.TextReq:
			return ss.textRequest(h, data)
		default:
			return ss.logout(h)
		}
	case pdu.SNACK:
		return ss.protocolError(h, pdu.RejectNotSupported, "SNACK at ErrorRecoveryLevel 0")
	default:
		return ss.protocolError(h, pdu.RejectProtocolError, "unexpected opcode")
	}
}

// sequence checks a request's CmdSN (RFC 7143 4.2.2.1). take is false when the request is to be ignored. On a single
// connection a gap can only be a fault of the initiator.
func (ss *session) sequence(h *pdu.Header) (take bool, err error) {
	if h.Immediate() {
		return !ss.drop.Load(), nil
	}
	sn := h.CmdSN()
	if pdu.Before(sn, ss.rxSN) || pdu.Before(ss.maxSN.Load(), sn) || ss.drop.Load() {
		ss.log.Warn("iscsi: request outside of the command window is ignored", "cmdsn", sn, "expected", ss.rxSN, "max", ss.maxSN.Load())
		return false, nil
	}
	if sn != ss.rxSN {
		return false, ss.protocolError(h, pdu.RejectProtocolError, fmt.Sprintf("CmdSN %d instead of %d", sn, ss.rxSN))
	}
	ss.rxSN++
	return true, nil
}

// protocolError rejects a PDU and returns the error that ends the connection, which is all the recovery that
// ErrorRecoveryLevel 0 knows.
func (ss *session) protocolError(h *pdu.Header, reason byte, why string) error {
	ss.reject(h, reason)
	return fmt.Errorf("protocol error, opcode %#x: %s", h.Opcode(), why)
}

// reject sends a Reject with the header that is refused (RFC 7143 11.17).
func (ss *session) reject(h *pdu.Header, reason byte) {
	r := pdu.New(pdu.Reject, pdu.Final)
	r[2] = reason
	r.SetITT(pdu.NoTag)
	bad := *h
	ss.out.Lock()
	ss.number(&r, true)
	ss.out.Append(&r, bad[:], nil)
	ss.out.UnlockAndFlush()
}

// number sets the sequence numbers of a response; status says that it takes a StatSN. MaxCmdSN never goes back, and
// moves on as commands are answered. The lock must be held.
func (ss *session) number(h *pdu.Header, status bool) {
	max := ss.expSN + uint32(ss.srv.cfg.Depth-ss.inFlight) - 1
	if old := ss.maxSN.Load(); pdu.Before(old, max) {
		ss.maxSN.Store(max)
	} else {
		max = old
	}
	h.SetNumbers(ss.statSN, ss.expSN, max)
	if status {
		ss.statSN++
	}
}

// acknowledged takes the initiator's ExpStatSN: it has all responses before that.
func (ss *session) acknowledged(expStatSN uint32) {
	var told []func()
	ss.out.Lock()
	for len(ss.telling) > 0 && pdu.Before(ss.telling[0].statSN, expStatSN) {
		told = append(told, ss.telling[0].told)
		ss.telling = ss.telling[1:]
	}
	ss.tells.Store(len(ss.telling) > 0)
	ss.out.Unlock()
	for _, f := range told {
		f()
	}
}

// attention queues a unit attention condition.
func (ss *session) attention(s scsi.Sense) {
	ss.out.Lock()
	defer ss.out.Unlock()
	for _, have := range ss.attn {
		if have.Is(s) {
			return
		}
	}
	ss.attn = append(ss.attn, s)
}

// takeAttention returns and clears the oldest unit attention condition.
func (ss *session) takeAttention() (s scsi.Sense) {
	ss.out.Lock()
	defer ss.out.Unlock()
	if len(ss.attn) > 0 {
		s, ss.attn = ss.attn[0], ss.attn[1:]
	}
	return s
}

// probe asks an initiator for a sign of life because another one wants the volume.
func (ss *session) probe() {
	if !ss.urgent.Swap(true) {
		ss.ping(time.Now())
	}
}

// ping sends a NOP-In that the initiator must answer.
func (ss *session) ping(now time.Time) {
	ss.probed.Store(now.UnixNano())
	h := pdu.New(pdu.NopIn, pdu.Final)
	h.SetITT(pdu.NoTag)
	h.SetTTT(uint32(now.UnixNano()) &^ 0x80000000)
	ss.out.Lock()
	ss.number(&h, false)
	ss.out.Append(&h, nil, nil)
	ss.out.UnlockAndFlush()
}

// checkAlive pings an initiator that is silent and drops one that has not answered in time.
func (ss *session) checkAlive(now time.Time) {
	rx, probed := ss.lastRx.Load(), ss.probed.Load()
	cfg := &ss.srv.cfg
	switch {
	case probed != 0 && rx >= probed:
		ss.probed.Store(0)
		ss.urgent.Store(false)
	case probed != 0:
		limit := cfg.NopTimeout
		if ss.urgent.Load() {
			limit = cfg.ProbeTimeout
		}
		if now.Sub(time.Unix(0, probed)) > limit {
			ss.log.Warn("iscsi: initiator does not answer", "silent", now.Sub(time.Unix(0, rx)))
			ss.nc.Close()
		}
	case now.Sub(time.Unix(0, rx)) > cfg.NopInterval:
		ss.ping(now)
	}
}

// shutdown answers what is in flight and then tells the initiator that the session ends (RFC 7143 11.9, event 3).
func (ss *session) shutdown(ctx context.Context) error {
	ss.drop.Store(true)
	idle := make(chan struct{})
	ss.out.Lock()
	if ss.tasks.first == nil || ss.ended {
		close(idle)
	} else {
		ss.idle = append(ss.idle, idle)
	}
	ss.out.Unlock()
	var err error
	select {
	case <-idle:
	case <-ss.done:
	case <-ctx.Done():
		err = fmt.Errorf("iscsi session of %s: commands still in flight: %w", ss.initiator, ctx.Err())
	}
	h := pdu.New(pdu.Async, pdu.Final)
	h.SetITT(pdu.NoTag)
	h[36] = pdu.AsyncDropSession
	ss.out.Lock()
	ss.number(&h, true)
	ss.out.Append(&h, nil, nil)
	ss.out.UnlockAndFlush()
	return err
}
