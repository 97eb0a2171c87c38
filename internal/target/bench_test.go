package target

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// memoryRecord is a record in memory.
type memoryRecord struct {
	mu sync.Mutex
	is volume.Record
}

func (r *memoryRecord) Read(context.Context) (volume.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is, nil
}

func (r *memoryRecord) Write(_ context.Context, from uint64, want volume.Record) (volume.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from == r.is.Version {
		r.is = want
	}
	return r.is, nil
}

// stub is a replica that keeps nothing: it acknowledges operations once per batch and reads zeroes. It is deaf to messages
// that takes, unless it is nil, says no to.
func stub(addr string, size int64, takes func(volume.Message) bool) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	out, err := wire.NewOutbox(conn.(*net.TCPConn), 1<<30)
	if err != nil {
		return
	}
	defer out.Close()
	m, start := volume.NewMember(0, volume.Report{GUID: block.NewGUID(), Size: size}, volume.LeaseTime), time.Now()
	m.Connect(1)
	send := func(msgs ...volume.Message) {
		for _, msg := range msgs {
			b, err := wire.AppendMessage(nil, msg)
			if err != nil {
				panic(err)
			}
			out.AppendCopy(b)
		}
		out.Flush()
	}
	send(volume.Register{Report: m.Report()})
	r := wire.NewReader(conn)
	defer r.Close()
	reply := make([]byte, wire.ReadReplyHeadSize(1)+block.Size)
	var op volume.Op
	var sums []uint32
	var last, stable uint64
	for r.Fill() == nil {
		due := false
		for {
			f, ok, err := r.Next()
			if err != nil || !ok {
				break
			}
			switch f.Type {
			case wire.TypeMessage:
				msg, err := f.Message()
				if err != nil {
					return
				}
				if takes != nil && !takes(msg) {
					continue
				}
				send(m.Step(time.Since(start), 1, msg).Messages...)
			case wire.TypeRead:
				wire.PutReadReply(reply, f.Tag, f.Block, []uint32{block.ZeroSum})
				out.AppendCopy(reply)
			case wire.TypeFlush:
				stable, due = last, true
			default:
				if sums, err = f.Op(&op, sums[:0]); err != nil {
					return
				}
				if op.Kind == volume.OpOpen {
					m.Open(1, &op)
					stable = op.Version.N
				}
				last, due = op.Version.N, true
			}
		}
		if due {
			out.AppendHeader(wire.Ack(last, stable))
		}
		out.Flush()
	}
}

// repeat keeps depth requests under way until n are done.
type repeat struct {
	t    *Target
	mu   sync.Mutex
	left int
	out  int
	done chan struct{}
	prep func(*block.Request)
}

func (c *repeat) Complete(batch []*block.Request) {
	next := make([]*block.Request, 0, len(batch))
	c.mu.Lock()
	for _, r := range batch {
		if r.Op == block.Read {
			r.Buf.Release()
		}
		if c.left--; c.left < 0 {
			if c.out--; c.out == 0 {
				close(c.done)
			}
			continue
		}
		c.prep(r)
		next = append(next, r)
	}
	c.mu.Unlock()
	if len(next) > 0 {
		c.t.Submit(next)
	}
}

func benchmark(b *testing.B, replicas, depth int, op block.Op) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	const size = 1 << 30
	t := New(Config{
		Volume: "bench", Size: size, ReplicaListen: l, Record: &memoryRecord{}, Desired: volume.Desired{Founding: replicas, Factor: replicas},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ended := make(chan struct{})
	go func() { t.Serve(context.Background()); close(ended) }()
	defer func() { t.Close(); <-ended }()
	for range replicas {
		go stub(l.Addr().String(), size, nil)
	}
	for !t.Status().Serving {
		time.Sleep(time.Millisecond)
	}
	data := block.WrapBuffer(make([]byte, block.Size))
	var at int64
	c := &repeat{t: t, left: b.N, out: depth, done: make(chan struct{})}
	c.prep = func(r *block.Request) {
		at = (at + 7919*block.Size) % size
		*r = block.Request{Op: op, Offset: at, Length: block.Size, Client: c}
		if op == block.Write {
			r.Data, r.Buf = data.B, data
			data.Retain()
		}
	}
	var first []*block.Request
	for range depth {
		r := new(block.Request)
		c.prep(r)
		first = append(first, r)
	}
	b.ReportAllocs()
	b.ResetTimer()
	t.Submit(first)
	<-c.done
}

// The figures include the replicas' side and the load; allocations must stay well below one for an operation.
func BenchmarkWrite(b *testing.B)           { benchmark(b, 3, 32, block.Write) }
func BenchmarkWriteDepth1(b *testing.B)     { benchmark(b, 3, 1, block.Write) }
func BenchmarkWriteOneReplica(b *testing.B) { benchmark(b, 1, 32, block.Write) }
func BenchmarkRead(b *testing.B)            { benchmark(b, 3, 32, block.Read) }
