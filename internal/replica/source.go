package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

const (
	sourceIdle   = 2 * time.Minute // a peer that asks for nothing for so long is gone
	sourceNotYet = 2 * time.Second // how long a pull waits here for the join point before the peer is told to try again
	sourceSigns  = 500 * time.Millisecond
)

// source serves one connection of a peer that pulls or inspects.
func (s *Server) source(conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := wire.Tune(tcp); err != nil {
			s.log.Warn("cannot tune a peer's connection", "peer", conn.RemoteAddr(), "error", err)
		}
	}
	r := wire.NewReader(conn)
	defer r.Close()
	srv := &sourceConn{server: s, conn: conn, gone: make(chan struct{})}
	ended := make(chan struct{})
	defer close(ended)
	s.tasks.Go(func() { srv.sign(ended) })
	for {
		f, ok, err := r.Next()
		if err == nil && !ok {
			conn.SetReadDeadline(time.Now().Add(sourceIdle))
			if err = r.Fill(); err == nil {
				continue
			}
		}
		if err == nil {
			err = srv.take(&f)
		}
		if err != nil {
			if err != io.EOF && s.ctx.Err() == nil {
				s.log.Info("a peer's connection has ended", "peer", conn.RemoteAddr(), "reason", err)
			}
			return
		}
	}
}

// sourceConn is the state of one such connection.
type sourceConn struct {
	server *Server
	conn   net.Conn
	gone   chan struct{} // closed when the peer takes nothing any more
	hello  *wire.Hello
	a      *attached
	frame  []byte
	have   [block.ChunkBlocks]block.Version
	chunk  pool.Chunk
	list   []uint64

	writing sync.Mutex
	owes    bool // a request is being answered
}

// sign tells the peer again and again that its request is being answered, however long a device takes for it, until the peer is
// gone.
func (c *sourceConn) sign(ended <-chan struct{}) {
	look := time.NewTicker(sourceSigns)
	defer look.Stop()
	working := wire.AppendWorking(nil)
	for {
		select {
		case <-ended:
			return
		case <-look.C:
		}
		c.writing.Lock()
		if c.owes {
			c.conn.SetWriteDeadline(time.Now().Add(peerTimeout))
			if _, err := c.conn.Write(working); err != nil {
				c.conn.Close()
				close(c.gone)
				c.writing.Unlock()
				return
			}
		}
		c.writing.Unlock()
	}
}

func (c *sourceConn) take(f *wire.Frame) error {
	c.writing.Lock()
	c.owes = true
	c.writing.Unlock()
	if c.hello == nil {
		h, err := f.Hello()
		if err != nil {
			return err
		}
		return c.greet(h)
	}
	switch f.Type {
	case wire.TypeChanged:
		list, next, done := c.a.r.Changed(f.Version(), f.Block, c.list[:0])
		c.list = list
		if err := c.mayServe(); err != nil {
			return c.refuse(wire.TypeChangedReply, f.Tag, err)
		}
		if done {
			next = wire.AllListed
		}
		c.frame = wire.AppendChangedReply(c.frame[:0], list, next)
		return c.write(nil)
	case wire.TypeChunk:
		index, err := f.ChunkRequest(&c.have)
		if err != nil {
			return err
		}
		if err := c.mayServe(); err != nil {
			return c.refuse(wire.TypeChunkReply, f.Tag, err)
		}
		if err := c.a.r.ReadNewer(index, f.Version(), c.have[:], &c.chunk); err != nil {
			c.a.note(err)
			return c.refuse(wire.TypeChunkReply, f.Tag, err)
		}
		// Once more, since what was read is a state of the volume only if the replica was complete all the time.
		if err := c.mayServe(); err != nil {
			return c.refuse(wire.TypeChunkReply, f.Tag, err)
		}
		k := &c.chunk
		c.frame = wire.AppendChunkReplyHead(c.frame[:0], f.Tag, &wire.Chunk{
			Index: k.Index, Scan: k.Scan, Versions: &k.Versions, Sums: &k.Sums, Stored: &k.Stored, Unlisted: &k.Unlisted, DataOf: k.DataOf,
		})
		return c.write(k.Data)
	}
	if f.Type == wire.TypeStage && !c.hello.Inspect {
		return c.stage(f)
	}
	return fmt.Errorf("%w: unexpected %v from a peer", wire.ErrFormat, f.Type)
}

// greet looks up the replica and waits a while until it may serve.
func (c *sourceConn) greet(h wire.Hello) error {
	s := c.server
	a := s.find(h.Replica)
	reply := wire.HelloReply{}
	err := fmt.Errorf("no replica %s is served here", h.Replica)
	if a != nil {
		c.hello, c.a = &h, a
		c.list = make([]uint64, 0, wire.MaxChanged)
		reply.GUID, reply.Size, reply.Applied = a.r.GUID(), a.r.Size(), a.r.Applied()
		if err = nil; !h.GUID.IsZero() && h.GUID != reply.GUID {
			err = fmt.Errorf("replica %s here is %v, not %v", h.Replica, reply.GUID, h.GUID)
		}
	}
	if err == nil {
		err = c.mayServe()
		for start := time.Now(); errors.Is(err, volume.ErrNotYet) && time.Since(start) < sourceNotYet; err = c.mayServe() {
			if !pause(a.ctx, 5*time.Millisecond) {
				return net.ErrClosed
			}
		}
		reply.Applied = a.r.Applied()
	}
	if err != nil {
		reply.Code, reply.Error = code(err), err.Error()
		s.log.Info("a peer may not pull", "replica", h.Replica, "by", h.By, "reason", err)
	}
	var encode error
	if c.frame, encode = wire.AppendHelloReply(c.frame[:0], reply); encode != nil {
		return encode
	}
	if werr := c.write(nil); werr != nil {
		return werr
	}
	return err
}

// mayServe reports whether the replica may answer this peer now. A pull is checked with each request, after the pool was
// looked at: the replica may have been claimed by another target since.
func (c *sourceConn) mayServe() error {
	a := c.a
	if err := a.ctx.Err(); err != nil {
		return errors.New("the replica is not served any more")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.hello.Inspect {
		return a.member.MayServe(c.hello.Promise, c.hello.From)
	}
	if !a.member.Report().State.Complete {
		return errors.New("the replica is not complete")
	}
	return nil
}

func (c *sourceConn) refuse(t wire.Type, tag uint32, err error) error {
	c.frame = wire.AppendError(c.frame[:0], t, tag, code(err), err.Error())
	return c.write(nil)
}

// write sends the frame that was made, and data behind it.
func (c *sourceConn) write(data []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.owes = false
	c.conn.SetWriteDeadline(time.Now().Add(peerTimeout))
	bufs := net.Buffers{c.frame}
	if len(data) > 0 {
		bufs = append(bufs, data)
	}
	_, err := bufs.WriteTo(c.conn)
	return err
}

func code(err error) wire.Code {
	switch {
	case errors.Is(err, volume.ErrNotYet):
		return wire.CodeNotYet
	case errors.Is(err, pool.ErrChecksum):
		return wire.CodeMedium
	case errors.Is(err, pool.ErrTooLarge):
		return wire.CodeTooMuch
	}
	return wire.CodeError
}
