package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// rawDevice is a file with O_DIRECT: a goroutine for each request under way.
type rawDevice struct {
	fd    int
	size  int64
	queue chan *block.Request
}

func aligned(n int) []byte {
	b := make([]byte, n+block.Size)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (block.Size - 1)
	return b[skip : skip+n : skip+n]
}

func (d *rawDevice) Size() int64 { return d.size }

func (d *rawDevice) Submit(batch []*block.Request) {
	for _, r := range batch {
		d.queue <- r
	}
}

func (d *rawDevice) work() {
	buf := aligned(1 << 20)
	for r := range d.queue {
		b := buf[:r.Length]
		if r.Op == block.Write {
			_, r.Err = unix.Pwrite(d.fd, b, r.Offset)
			r.Buf.Release()
		} else {
			_, r.Err = unix.Pread(d.fd, b, r.Offset)
		}
		r.Client.Complete([]*block.Request{r})
	}
}

// raw measures what the disk gives.
func raw(c *config) ([]result, error) {
	path := filepath.Join(c.dir, "raw.img")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
	if err != nil {
		return nil, fmt.Errorf("raw file: %w", err)
	}
	defer os.Remove(path)
	defer unix.Close(fd)
	d := &rawDevice{fd: fd, size: c.size, queue: make(chan *block.Request, 64)}
	defer close(d.queue)
	for range 32 {
		go d.work()
	}
	if err := fillDevice(d, c.size); err != nil {
		return nil, err
	}
	return cells(c, d, "raw file, O_DIRECT", &usage{}, nil)
}

// cells measures all workloads. during is called before each.
func cells(c *config, d block.Device, row string, u *usage, during func(workload)) (rows []result, err error) {
	for _, w := range workloads {
		if during != nil {
			during(w)
		}
		r, err := measure(c, d, row, w, u)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r)
		fmt.Fprintf(os.Stderr, "%s, %s, depth %d: %.0f/s\n", row, w.name, w.depth, r.iops)
	}
	return rows, nil
}

// echoDevice speaks the wire format to a server that has no disk.
type echoDevice struct {
	size int64
	out  *wire.Outbox

	mu    sync.Mutex
	n     uint64
	ring  [1024]*block.Request // writes under way, by number
	done  uint64
	reads [1024]*block.Request // by tag
	free  []uint32
	sums  []uint32
}

func (d *echoDevice) Size() int64 { return d.size }

func (d *echoDevice) Submit(batch []*block.Request) {
	d.mu.Lock()
	for _, r := range batch {
		if r.Op == block.Read {
			tag := d.free[len(d.free)-1]
			d.free = d.free[:len(d.free)-1]
			d.reads[tag] = r
			d.out.AppendHeader(wire.Read(tag, uint64(r.Offset)/block.Size, uint32(r.Length/block.Size)))
			continue
		}
		d.n++
		d.ring[d.n%1024] = r
		d.sums = wire.Sums(d.sums[:0], r.Data)
		op := volume.Op{
			Kind: volume.OpWrite, Block: uint64(r.Offset) / block.Size, Count: uint32(r.Length / block.Size),
			Version: block.Version{Epoch: 1, N: d.n}, Data: r.Data, Sums: d.sums,
		}
		head := make([]byte, wire.OpHeadSize(&op))
		wire.PutOp(head, &op)
		d.out.AppendTwo(head, r.Data, r.Buf)
	}
	d.mu.Unlock()
	d.out.Flush()
}

func (d *echoDevice) receive(conn net.Conn) error {
	r := wire.NewReader(conn)
	defer r.Close()
	var batch []*block.Request
	for {
		if err := r.Fill(); err != nil {
			return err
		}
		batch = batch[:0]
		for {
			f, ok, err := r.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			d.mu.Lock()
			if f.Type == wire.TypeReadReply {
				req := d.reads[f.Tag]
				d.free = append(d.free, f.Tag)
				if _, req.Err = f.ReadReply(); req.Err != nil {
					return req.Err
				}
				batch = append(batch, req)
			} else {
				for applied, _ := f.Ack(); d.done < applied; {
					d.done++
					batch = append(batch, d.ring[d.done%1024])
				}
			}
			d.mu.Unlock()
		}
		if len(batch) > 0 {
			batch[0].Client.Complete(batch)
		}
	}
}

// echo measures what the protocol costs with one peer and no disk.
func echo(c *config) ([]result, error) {
	addrs, err := harness.FreeAddresses(1)
	if err != nil {
		return nil, err
	}
	p := harness.NewProcess(harness.Spec{Name: "echo", Dir: c.dir, Echo: addrs[0]})
	if err := p.Start(); err != nil {
		return nil, err
	}
	defer p.Kill()
	conn, err := net.DialTimeout("tcp", addrs[0], time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	out, err := wire.NewOutbox(conn.(*net.TCPConn), 1<<30)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	d := &echoDevice{size: c.size, out: out}
	for i := range d.reads {
		d.free = append(d.free, uint32(i))
	}
	go func() {
		if err := d.receive(conn); err != nil && err != io.EOF && !isClosed(err) {
			fmt.Fprintln(os.Stderr, "bench: echo:", err)
		}
	}()
	return cells(c, d, "TCP echo server, no disk", &usage{pools: []*harness.Process{p}}, nil)
}

func isClosed(err error) bool { _, ok := err.(*net.OpError); return ok }
