package harness

import (
	"context"
	"net"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// runEcho is what the protocol costs without a disk: it checks the operations it gets, acknowledges them once per batch,
// and answers reads with zeroes.
func runEcho(ctx context.Context, addr string, ready func() error) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	if err := ready(); err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil
		}
		go echo(conn.(*net.TCPConn))
	}
}

func echo(conn *net.TCPConn) {
	defer conn.Close()
	out, err := wire.NewOutbox(conn, 1<<30)
	if err != nil {
		return
	}
	defer out.Close()
	r := wire.NewReader(conn)
	defer r.Close()
	const most = 256
	head := wire.ReadReplyHeadSize(most)
	zeroes := make([]byte, head+most*block.Size)
	sums := wire.Sums(nil, zeroes[head:])
	var op volume.Op
	var table []uint32
	var last uint64
	for {
		if r.Fill() != nil {
			return
		}
		acked := last
		for {
			f, ok, err := r.Next()
			if err != nil {
				return
			}
			if !ok {
				break
			}
			if f.Type == wire.TypeRead {
				first, n, err := f.Read()
				if err != nil || n > most {
					return
				}
				b := make([]byte, wire.ReadReplyHeadSize(n))
				wire.PutReadReply(b, f.Tag, first, sums[:n])
				out.Append(b, nil)
				out.Append(zeroes[head:head+int(n)*block.Size], nil)
				continue
			}
			if table, err = f.Op(&op, table[:0]); err != nil {
				return
			}
			last = op.Version.N
		}
		if last != acked {
			out.AppendHeader(wire.Ack(last, 0))
		}
		out.Flush()
	}
}
