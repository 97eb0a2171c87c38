package iscsi

import (
	"fmt"
	"net"
	"time"
)

// refusal is a login that is answered with a status class and detail (RFC 7143 11.13.5).
type refusal struct {
	class, detail byte
	why           string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("refused with status %02x%02x: %s", r.class, r.detail, r.why)
}

// Login refusals.
const (
	initiatorError = 2
	targetError    = 3

	detailInitiatorError = 0x00
	detailAuthFailed     = 0x01
	detailNotFound       = 0x03
	detailVersion        = 0x05
	detailTooMany        = 0x06
	detailMissing        = 0x07
	detailSessionType    = 0x09
	detailNoSession      = 0x0a

	detailUnavailable = 0x01
)

func refuse(class, detail byte, format string, args ...any) *refusal {
	return &refusal{class, detail, fmt.Sprintf(format, args...)}
}

// register makes a session whose login is about to succeed the current one. The old session of the same initiator is
// replaced: its connection is closed and its reader has ended when register returns, so that whatever it still had
// in flight was submitted to the device before anything that the new session will submit, and the device keeps that
// order. A session of another initiator is probed, and as long as it answers, the new one is refused.
//
// An initiator is known by name and address, because nodes cloned from one image often share a name.
func (s *Server) register(ss *session) *refusal {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return refuse(targetError, detailUnavailable, "target is shutting down")
	}
	s.lastTSIH++
	if s.lastTSIH == 0 {
		s.lastTSIH = 1
	}
	ss.tsih = s.lastTSIH
	old := s.current
	switch {
	case ss.discovery:
		s.sessions[ss] = struct{}{}
		s.mu.Unlock()
		return nil
	case s.claim != nil:
		s.mu.Unlock()
		return refuse(targetError, detailUnavailable, "another login is replacing the session")
	case old != nil && !old.sameInitiator(ss):
		old.probe()
		s.mu.Unlock()
		return refuse(targetError, detailUnavailable, "volume is in use by %s at %s since %s",
			old.initiator, old.nc.RemoteAddr(), old.since.Format(time.RFC3339))
	}
	s.claim = ss
	s.mu.Unlock()
	if old != nil {
		ss.log.Info("iscsi: session is replaced by a new login", "initiator", ss.initiator)
		old.nc.Close()
		<-old.done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claim = nil
	if s.closed {
		return refuse(targetError, detailUnavailable, "target is shutting down")
	}
	s.current = ss
	s.sessions[ss] = struct{}{}
	return nil
}

// unregister forgets a session whose reader has ended.
func (s *Server) unregister(ss *session) {
	s.mu.Lock()
	delete(s.sessions, ss)
	if s.current == ss {
		s.current = nil
	}
	s.mu.Unlock()
}

// knows reports whether a session handle belongs to the normal session.
func (s *Server) knows(tsih uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != nil && s.current.tsih == tsih
}

func (ss *session) sameInitiator(o *session) bool {
	return ss.initiator == o.initiator && host(ss.nc.RemoteAddr()) == host(o.nc.RemoteAddr())
}

func host(a net.Addr) string {
	if h, _, err := net.SplitHostPort(a.String()); err == nil {
		return h
	}
	return a.String()
}
