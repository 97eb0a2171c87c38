package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/wire"
)

// peer is a connection to another replica server. Not for concurrent use.
type peer struct {
	conn  *net.TCPConn
	r     *wire.Reader
	frame []byte
	asks  []byte // requests for chunks that are not sent yet
	stop  func() bool
	hello wire.HelloReply
}

const (
	peerSilent  = 2 * time.Second  // without a byte of a peer that owes a reply: it is gone, or frozen
	peerTimeout = 30 * time.Second // for one reply, whatever the peer says meanwhile
)

// dialPeer connects to a replica server and says what is wanted. The connection closes when ctx ends. An error may be a
// *wire.RemoteError.
func dialPeer(ctx context.Context, addr string, h wire.Hello) (*peer, error) {
	dialer := net.Dialer{Timeout: peerSilent}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to replica %s: %w", h.Replica, err)
	}
	p := &peer{conn: conn.(*net.TCPConn), r: wire.NewReader(conn)}
	p.stop = context.AfterFunc(ctx, func() { conn.Close() })
	if p.hello, err = p.greet(h); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *peer) greet(h wire.Hello) (reply wire.HelloReply, err error) {
	if err := wire.Tune(p.conn); err != nil {
		return reply, err
	}
	if p.frame, err = wire.AppendHello(p.frame[:0], h); err != nil {
		return reply, err
	}
	if err := p.write(); err != nil {
		return reply, err
	}
	f, err := p.next()
	if err != nil {
		return reply, err
	}
	return f.HelloReply()
}

func (p *peer) close() {
	p.stop()
	p.conn.Close()
	p.r.Close()
}

// write sends the frame that was made.
func (p *peer) write() error {
	p.conn.SetWriteDeadline(time.Now().Add(peerTimeout))
	_, err := p.conn.Write(p.frame)
	return err
}

// next waits for a reply, which is valid until the next call.
func (p *peer) next() (f wire.Frame, err error) {
	for begin := time.Now(); ; {
		f, ok, err := p.r.Next()
		if err != nil || ok && f.Type != wire.TypeWorking {
			return f, err
		}
		if ok {
			continue
		}
		now := time.Now()
		p.conn.SetReadDeadline(now.Add(min(peerSilent, begin.Add(peerTimeout).Sub(now))))
		if err = p.r.Fill(); errors.Is(err, os.ErrDeadlineExceeded) {
			return f, fmt.Errorf("%v owes an answer since %v, and was heard of last %v ago", p.conn.RemoteAddr(),
				time.Since(begin).Round(time.Millisecond), time.Since(now).Round(time.Millisecond))
		} else if err != nil {
			return f, err
		}
	}
}

// changed returns the chunks whose newest version is above base, in ascending order.
func (p *peer) changed(base block.Version) (chunks []uint64, err error) {
	for next := uint64(0); next != wire.AllListed; {
		p.frame = wire.AppendChanged(p.frame[:0], base, next)
		if err := p.write(); err != nil {
			return nil, err
		}
		f, err := p.next()
		if err != nil {
			return nil, err
		}
		if chunks, next, err = f.ChangedReply(chunks); err != nil {
			return nil, err
		}
	}
	return chunks, nil
}

// ask requests what is newer than base in a chunk, here or there; have are the versions here that are. Replies come in the
// order of requests, which are sent by chunk.
func (p *peer) ask(index uint64, base block.Version, have *[block.ChunkBlocks]block.Version) {
	p.asks = wire.AppendChunkRequest(p.asks, uint32(index), index, base, have)
}

// chunk waits for the reply to the oldest request, which was for index. Data is valid until the next call.
func (p *peer) chunk(index uint64, c *pool.Chunk) error {
	if len(p.asks) > 0 {
		p.frame, p.asks = p.asks, p.frame[:0]
		if err := p.write(); err != nil {
			return err
		}
	}
	f, err := p.next()
	if err != nil {
		return err
	}
	w := wire.Chunk{Versions: &c.Versions, Sums: &c.Sums, Stored: &c.Stored, Unlisted: &c.Unlisted, DataOf: c.DataOf}
	if err := f.ChunkReply(&w); err != nil {
		return err
	}
	if w.Index != index {
		return fmt.Errorf("%w: chunk %d instead of %d", wire.ErrFormat, w.Index, index)
	}
	c.Index, c.Scan, c.DataOf, c.Data = w.Index, w.Scan, w.DataOf, w.Data
	return nil
}
