package iscsi

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"

	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

const (
	loginSegment = 8192     // MaxRecvDataSegmentLength while logging in (RFC 7143 6.1)
	loginText    = 64 << 10 // bytes of keys over all continued requests
	loginRounds  = 32       // requests in one login
)

// loginState is one login phase (RFC 7143 6.3).
type loginState struct {
	srv     *Server
	c       net.Conn
	neg     *negotiation
	started bool // the first request came
	first   bool // the first request, with all its continuations, is not answered yet
	stage   int
	isid    [6]byte
	cid     uint16
	itt     uint32
	cmdSN   uint32
	stat    uint32
	text    []byte
	ss      *session
}

// login runs the login phase. It returns the session in full feature phase, already registered.
func (s *Server) login(c net.Conn, log *slog.Logger) (*session, error) {
	l := &loginState{srv: s, c: c, neg: newNegotiation(), first: true}
	for range loginRounds {
		h, data, err := pdu.ReadOne(c, loginSegment)
		if err != nil {
			return nil, l.abandon(err)
		}
		done, err := l.request(&h, data, log)
		if err != nil {
			var r *refusal
			if errors.As(err, &r) {
				l.respond(&h, l.stage, 0, false, r.class, r.detail, nil)
			}
			return nil, l.abandon(err)
		}
		if done {
			return l.ss, nil
		}
	}
	return nil, l.abandon(fmt.Errorf("no end after %d requests", loginRounds))
}

// abandon takes back a session that was registered but whose login did not get to its end.
func (l *loginState) abandon(err error) error {
	if l.ss != nil {
		l.srv.unregister(l.ss)
		close(l.ss.done)
	}
	return err
}

// request handles one login request; done means that the full feature phase begins.
func (l *loginState) request(h *pdu.Header, data []byte, log *slog.Logger) (done bool, err error) {
	if h.Opcode() != pdu.LoginReq {
		return false, refuse(initiatorError, detailInitiatorError, "opcode %#x during login", h.Opcode())
	}
	if err := l.check(h); err != nil {
		return false, err
	}
	current, next := h.Stages()
	transit := h.Has(pdu.Transit)
	if transit && h.Has(pdu.Continue) {
		return false, refuse(initiatorError, detailInitiatorError, "both T and C bit")
	}
	if current != pdu.StageSecurity && current != pdu.StageOperational || current < l.stage ||
		transit && (next <= current || next == 2) {
		return false, refuse(initiatorError, detailInitiatorError, "stage %d to %d in stage %d", current, next, l.stage)
	}
	l.stage = current
	if l.text = append(l.text, data...); len(l.text) > loginText {
		return false, refuse(initiatorError, detailInitiatorError, "more than %d bytes of keys", loginText)
	}
	if h.Has(pdu.Continue) {
		return false, l.respond(h, current, current, false, 0, 0, nil)
	}
	pairs, err := pdu.ParseText(l.text)
	l.text = nil
	if err != nil {
		return false, refuse(initiatorError, detailInitiatorError, "%v", err)
	}
	leading := l.first
	l.first = false
	answers, err := l.neg.answer(current, pairs)
	if err != nil {
		return false, err
	}
	if leading {
		if err := l.leading(); err != nil {
			return false, err
		}
		if !l.neg.discovery {
			answers = append(answers, pdu.Pair{Key: "TargetPortalGroupTag", Value: strconv.Itoa(int(l.srv.cfg.PortalTag))})
		}
	}
	if !transit {
		return false, l.respond(h, current, current, false, 0, 0, answers)
	}
	if next == pdu.StageFull {
		if err := l.establish(log); err != nil {
			return false, err
		}
	}
	l.stage = next
	return next == pdu.StageFull, l.respond(h, current, next, true, 0, 0, answers)
}

// check verifies what must be the same in every request of a login.
func (l *loginState) check(h *pdu.Header) error {
	isid, tsih := h.SessionID()
	if h[3] > 0 { // version-min; ours is 0
		return refuse(initiatorError, detailVersion, "version %d or newer wanted", h[3])
	}
	if !l.started {
		l.started = true
		l.isid, l.cid, l.itt, l.cmdSN, l.stat = isid, h.CID(), h.ITT(), h.CmdSN(), h.ExpStatSN()
	}
	switch {
	case tsih != 0 && l.srv.knows(tsih):
		return refuse(initiatorError, detailTooMany, "a session has one connection")
	case tsih != 0:
		return refuse(initiatorError, detailNoSession, "no session %d", tsih)
	case isid != l.isid || h.CID() != l.cid || h.ITT() != l.itt:
		return refuse(initiatorError, detailInitiatorError, "ISID, CID or task tag changed during login")
	}
	return nil
}

// leading checks the names that the first request must have.
func (l *loginState) leading() error {
	if err := l.neg.finish(); err != nil {
		return err
	}
	if !l.neg.discovery && l.neg.target != l.srv.cfg.TargetName {
		return refuse(initiatorError, detailNotFound, "no target %q", l.neg.target)
	}
	return nil
}

// establish makes the session and registers it. The volume has to be ready before, since registering ends the session that
// there is, and after: Drop ends only what is registered.
func (l *loginState) establish(log *slog.Logger) error {
	if err := l.neg.finish(); err != nil {
		return err
	}
	if err := l.ready(); err != nil {
		return err
	}
	ss, err := newSession(l, log)
	if err != nil {
		return err
	}
	if r := l.srv.register(ss); r != nil {
		return r
	}
	l.ss = ss
	return l.ready()
}

// ready refuses a login to a volume that is not ready.
func (l *loginState) ready() error {
	if l.neg.discovery || l.srv.cfg.Ready == nil {
		return nil
	}
	if err := l.srv.cfg.Ready(); err != nil {
		return refuse(targetError, detailUnavailable, "volume is not ready: %v", err)
	}
	return nil
}

// respond sends a login response (RFC 7143 11.13).
func (l *loginState) respond(req *pdu.Header, current, next int, transit bool, class, detail byte, pairs []pdu.Pair) error {
	h := pdu.New(pdu.LoginResp, byte(current<<2))
	if transit {
		h[1] |= pdu.Transit | byte(next)
	}
	_, tsih := req.SessionID()
	if l.ss != nil {
		tsih = l.ss.tsih
	}
	h.SetSessionID(l.isid, tsih)
	h.SetITT(req.ITT())
	h[36], h[37] = class, detail
	depth := uint32(l.srv.cfg.Depth)
	if class == 0 {
		h.SetNumbers(l.stat, l.cmdSN, l.cmdSN+depth-1)
		l.stat++
		if l.ss != nil {
			l.ss.statSN = l.stat
		}
	} else {
		h.SetNumbers(l.stat, l.cmdSN, l.cmdSN)
	}
	data := pdu.AppendText(nil, pairs...)
	if len(data) > loginSegment {
		return fmt.Errorf("answer of %d bytes", len(data))
	}
	return pdu.WriteOne(l.c, &h, data)
}
