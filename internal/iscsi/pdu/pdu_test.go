package pdu_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

// TestSmallTailKeepsBuffer sends one buffer as several PDUs of which the last is small enough to be copied: the memory
// must not be reused before the others are sent.
func TestSmallTailKeepsBuffer(t *testing.T) {
	a, b := tcpPair(t)
	p := pdu.DefaultParams()
	s, err := pdu.NewSender(a, &p)
	if err != nil {
		t.Fatal(err)
	}
	pool := block.NewBufferPool(8192)
	buf := pool.Get()
	for i := range buf.B {
		buf.B[i] = 1
	}
	h := pdu.New(pdu.DataIn, 0)
	s.Lock()
	s.Append(&h, buf.B[:4096], nil)
	s.Append(&h, buf.B[4096:4096+512], buf)
	clear(pool.Get().B) // would be the same memory if it had been released
	s.UnlockAndFlush()
	for _, n := range []int{4096, 512} {
		_, data, err := pdu.ReadOne(b, 8192)
		if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{1}, n)) {
			t.Errorf("PDU of %d bytes came damaged (%v)", n, err)
		}
	}
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestStream sends PDUs of all sizes through a Sender and a Reader whose reads end anywhere, with all digests, with and
// without placement.
func TestStream(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for mode := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(mode)))
		p := pdu.DefaultParams()
		p.MaxRecv = pdu.MaxSegment
		p.HeaderDigest, p.DataDigest = mode&1 != 0, mode&2 != 0
		a, b := tcpPair(t)
		s, err := pdu.NewSender(a, &p)
		if err != nil {
			t.Fatal(err)
		}
		sizes := []int{0, 1, 2, 3, 48, 511, 512, 513, 4096, 65536, pdu.MaxSegment - 1, pdu.MaxSegment}
		noise := make([]byte, 2*pdu.MaxSegment)
		for i := 0; i < len(noise); i += 8 {
			binary.LittleEndian.PutUint64(noise[i:], r.Uint64())
		}
		var sent [][]byte
		for range 60 {
			at := r.IntN(pdu.MaxSegment)
			sent = append(sent, noise[at:at+sizes[r.IntN(len(sizes))]])
		}
		in := pdu.NewReader(ragged{b, r}, &p)
		placed := false
		if mode&4 != 0 {
			in.Place = func(h *pdu.Header) []byte { placed = true; return make([]byte, h.DataLen()) }
		}
		for i, d := range sent {
			h := pdu.New(pdu.DataIn, 0)
			h.SetITT(uint32(i))
			s.Lock()
			s.Append(&h, d, nil)
			s.UnlockAndFlush() // more than the socket holds: the goroutine has to take over
		}
		for i, d := range sent {
			ok, err := in.Next()
			for err == nil && !ok {
				if err = in.Fill(); err == nil {
					ok, err = in.Next()
				}
			}
			if err != nil {
				t.Fatalf("mode %d PDU %d: %v", mode, i, err)
			}
			if in.Header.ITT() != uint32(i) || !bytes.Equal(in.Data, d) {
				t.Fatalf("mode %d: PDU %d of %d bytes came as %d of %d", mode, i, len(d), in.Header.ITT(), len(in.Data))
			}
			if r.IntN(3) == 0 && !in.Placed {
				defer in.Lend().Release()
			}
		}
		if mode&4 != 0 && !placed {
			t.Error("nothing was placed")
		}
		s.WaitIdle()
		in.Close()
	}
}

// ragged reads in pieces of random length.
type ragged struct {
	io.Reader
	r *rand.Rand
}

func (g ragged) Read(b []byte) (int, error) { return g.Reader.Read(b[:1+g.r.IntN(len(b))]) }

// FuzzReader feeds arbitrary bytes to a Reader; it must end with an error and hand out only what lies inside.
func FuzzReader(f *testing.F) {
	f.Add([]byte("not a PDU"), byte(0))
	f.Add(append(make([]byte, 48), 1, 2, 3), byte(3))
	f.Add(append([]byte{1, 0x80, 0, 0, 0, 0, 0, 4}, make([]byte, 48)...), byte(4))
	f.Fuzz(func(t *testing.T, b []byte, mode byte) {
		p := pdu.DefaultParams()
		p.HeaderDigest, p.DataDigest = mode&1 != 0, mode&2 != 0
		in := pdu.NewReader(bytes.NewReader(b), &p)
		defer in.Close()
		if mode&4 != 0 {
			in.Place = func(h *pdu.Header) []byte { return make([]byte, h.DataLen()) }
		}
		for {
			ok, err := in.Next()
			if err == nil && ok && len(in.Data) != in.Header.DataLen() {
				t.Fatalf("%d bytes of data, header says %d", len(in.Data), in.Header.DataLen())
			}
			if err == nil && !ok {
				err = in.Fill()
			}
			if err != nil {
				return
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("SendTargets=All\x00"))
	f.Add([]byte("a=b\x00\x00=\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := pdu.ParseText(b)
		if err != nil {
			return
		}
		again, err := pdu.ParseText(pdu.AppendText(nil, pairs...))
		if err != nil || len(again) != len(pairs) {
			t.Fatalf("%q does not survive: %q %v", pairs, again, err)
		}
	})
}
