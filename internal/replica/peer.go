package replica

import (
	"context"
	"fmt"
	"net"
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
	stop  func() bool
	hello wire.HelloReply
}

const peerTimeout = 30 * time.Second // for one reply

// dialPeer connects to a replica server and says what is wanted. The connection closes when ctx ends. An error may be a
// *wire.RemoteError.
func dialPeer(ctx context.Context, addr string, h wire.Hello) (*peer, error) {
	dialer := net.Dialer{Timeout: 3 * time.Second}
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

// next waits for a frame, which is valid until the next call.
func (p *peer) next() (f wire.Frame, err error) {
	p.conn.SetReadDeadline(time.Now().Add(peerTimeout))
	for {
		f, ok, err := p.r.Next()
		if ok || err != nil {
			return f, err
		}
		if err := p.r.Fill(); err != nil {
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

// ask requests a chunk; replies come in the order of requests.
func (p *peer) ask(index uint64, have *[block.ChunkBlocks]block.Version) error {
	p.frame = wire.AppendChunkRequest(p.frame[:0], uint32(index), index, have)
	return p.write()
}

// chunk waits for the reply to the oldest request, which was for index. Data is valid until the next call.
func (p *peer) chunk(index uint64, c *pool.Chunk) error {
	f, err := p.next()
	if err != nil {
		return err
	}
	w := wire.Chunk{Versions: &c.Versions, Sums: &c.Sums, Stored: &c.Stored, DataOf: c.DataOf}
	if err := f.ChunkReply(&w); err != nil {
		return err
	}
	if w.Index != index {
		return fmt.Errorf("%w: chunk %d instead of %d", wire.ErrFormat, w.Index, index)
	}
	c.Index, c.Scan, c.DataOf, c.Data = w.Index, w.Scan, w.DataOf, w.Data
	return nil
}
