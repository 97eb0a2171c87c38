// Package iscsi serves one block.Device as LUN 0 of an iSCSI target (RFC 7143), for the initiators that people have:
// the Linux kernel's, libiscsi, QEMU. Each connection is run to completion on one goroutine: everything that one read
// of the socket brought is parsed, submitted to the device as one batch, and answered from the device's completions
// with as few writes as possible. SCSI itself is in package scsi, the wire format in package pdu.
//
// One initiator at a time has a session. Another one is refused as long as the first one answers; the same one, by
// name and address, replaces its old session. ErrorRecoveryLevel is 0 and a session has one connection.
package iscsi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// Config says what a Server serves and to whom. Zero values of the limits mean the defaults given here.
type Config struct {
	TargetName string // iSCSI name (IQN)
	Portal     string // "host:port" told to discovery sessions; empty: the address that the initiator dialled
	PortalTag  uint16 // target portal group tag; default 1
	Serial     string // unit serial number
	Vendor     string // default "OpenEBS"
	Product    string // default "iscsi"
	Revision   string // default "0"
	Device     block.Device
	Log        *slog.Logger // default: slog.Default()
	// Ready, if set, returns why the volume cannot be used now; logins to it are then refused with "service unavailable".
	Ready func() error

	Depth          int           // commands in flight that are offered; default 128
	MaxInFlight    int           // bytes of reads and writes in progress before further ones wait; default 64 MiB
	MaxConnections int           // connections of all kinds, logging in or logged in; default 32
	LoginTimeout   time.Duration // default 15 s
	NopInterval    time.Duration // idle time before the target pings; default 20 s
	NopTimeout     time.Duration // time that an initiator has to answer a ping; default 10 s
	ProbeTimeout   time.Duration // the same when another initiator wants the volume; default 5 s
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	str := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	str(&c.Vendor, "OpenEBS")
	str(&c.Product, "iscsi")
	str(&c.Revision, "0")
	num(&c.Depth, 128)
	num(&c.MaxInFlight, 64<<20)
	num(&c.MaxConnections, 32)
	def(&c.LoginTimeout, 15*time.Second)
	def(&c.NopInterval, 20*time.Second)
	def(&c.NopTimeout, 10*time.Second)
	def(&c.ProbeTimeout, 5*time.Second)
	if c.PortalTag == 0 {
		c.PortalTag = 1
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// SessionInfo describes a normal session for status reports.
type SessionInfo struct {
	Initiator string
	ISID      [6]byte
	Address   string // remote host:port
	Since     time.Time
	InFlight  int // commands
}

// Server is an iSCSI target. Its methods may be called concurrently.
type Server struct {
	cfg  Config
	unit *scsi.Unit

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{} // all connections, in whatever phase
	sessions  map[*session]struct{} // normal and discovery sessions in full feature phase
	current   *session              // the normal session
	claim     *session              // the login that is replacing it
	lastTSIH  uint16
	wg        sync.WaitGroup // connections
	stop      chan struct{}
}

// NewServer returns a target that does not listen yet.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Device == nil || cfg.TargetName == "" {
		return nil, errors.New("iscsi target: a device and a target name are needed")
	}
	cfg.setDefaults()
	s := &Server{
		cfg: cfg,
		unit: &scsi.Unit{
			Vendor: cfg.Vendor, Product: cfg.Product, Revision: cfg.Revision, Serial: cfg.Serial,
			Target: cfg.TargetName, PortTag: cfg.PortalTag, Size: cfg.Device.Size,
		},
		listeners: map[net.Listener]struct{}{},
		conns:     map[net.Conn]struct{}{},
		sessions:  map[*session]struct{}{},
		stop:      make(chan struct{}),
	}
	go s.keepAlive()
	return s, nil
}

// Serve accepts connections until the listener fails or the server is closed; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		c, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			delete(s.listeners, l)
			closed := s.closed
			s.mu.Unlock()
			if closed {
				return nil
			}
			return fmt.Errorf("iscsi target %s: %w", s.cfg.TargetName, err)
		}
		s.accept(c)
	}
}

func (s *Server) accept(c net.Conn) {
	s.mu.Lock()
	if s.closed || len(s.conns) >= s.cfg.MaxConnections {
		s.mu.Unlock()
		s.cfg.Log.Warn("iscsi: connection refused", "from", c.RemoteAddr(), "connections", s.cfg.MaxConnections)
		c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		s.serveConn(c)
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// serveConn logs a connection in and then runs its session.
func (s *Server) serveConn(c net.Conn) {
	log := s.cfg.Log.With("from", c.RemoteAddr().String())
	c.SetDeadline(time.Now().Add(s.cfg.LoginTimeout))
	ss, err := s.login(c, log)
	if err != nil {
		log.Info("iscsi: login failed", "err", err)
		return
	}
	c.SetDeadline(time.Time{})
	ss.run()
}

// Sessions returns the normal session, if there is one.
func (s *Server) Sessions() []SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil
	}
	return []SessionInfo{s.current.info()}
}

// CapacityChanged tells the initiator that the size of the device changed.
func (s *Server) CapacityChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.attention(scsi.CapacityDataChanged)
	}
}

// Drop ends the normal session without answering what is in flight. When it returns, nothing that the initiator sent in
// it, and no login that was answered before, will be submitted any more.
func (s *Server) Drop() {
	s.mu.Lock()
	old := s.current
	s.mu.Unlock()
	if old != nil {
		old.nc.Close()
		<-old.done
	}
}

// Close drops all connections at once. Requests that the device holds complete into nothing.
func (s *Server) Close() error {
	s.stopListening()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Shutdown takes no more commands, waits until those in flight are answered or ctx ends, tells initiators that the
// session is dropped (they will then try to log in again, here or where the target is next), and closes.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopListening()
	s.mu.Lock()
	var all []*session
	for ss := range s.sessions {
		all = append(all, ss)
	}
	s.mu.Unlock()
	var err error
	for _, ss := range all {
		err = errors.Join(err, ss.shutdown(ctx))
	}
	return errors.Join(err, s.Close())
}

func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	for l := range s.listeners {
		l.Close()
	}
}

// keepAlive pings silent initiators and drops those that do not answer.
func (s *Server) keepAlive() {
	t := time.NewTicker(min(s.cfg.NopInterval, s.cfg.NopTimeout, s.cfg.ProbeTimeout)/4 + 1)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case now := <-t.C:
			s.mu.Lock()
			for ss := range s.sessions {
				ss.checkAlive(now)
			}
			s.mu.Unlock()
		}
	}
}
