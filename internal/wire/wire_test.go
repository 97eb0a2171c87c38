package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

func randomBlocks(seed uint64, n int) []byte {
	data := make([]byte, n*block.Size)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

func encodeOp(op *volume.Op) []byte {
	b := make([]byte, OpHeadSize(op))
	PutOp(b, op)
	return append(b, op.Data...)
}

// parse returns the only frame of b.
func parse(t *testing.T, b []byte) *Frame {
	t.Helper()
	r := NewReader(bytes.NewReader(b))
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	f, ok, err := r.Next()
	if err != nil || !ok {
		t.Fatalf("frame: %v, %v", ok, err)
	}
	return &f
}

func TestOperations(t *testing.T) {
	data := randomBlocks(1, 3)
	v := block.Version{Epoch: 7, N: 1 << 40}
	for _, want := range []volume.Op{
		{Kind: volume.OpWrite, FUA: true, Block: 99, Count: 3, Version: v, Data: data, Sums: Sums(nil, data)},
		{Kind: volume.OpDiscard, Block: 1 << 30, Count: 1 << 20, Version: v},
		{Kind: volume.OpOpen, Version: v, Open: &volume.EpochStart{Epoch: 7, First: 1 << 40, Lossy: true, Nonce: 1<<64 - 3}},
	} {
		var got volume.Op
		if _, err := parse(t, encodeOp(&want)).Op(&got, nil); err != nil {
			t.Errorf("%v: %v", want.Kind, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestAnotherVersionIsRefused has a peer of another release say something: the error is for people.
func TestAnotherVersionIsRefused(t *testing.T) {
	b := encodeOp(&volume.Op{Kind: volume.OpDiscard, Count: 1, Version: block.Version{Epoch: 1, N: 1}})
	le.PutUint16(b, Version-1)
	if _, err := ParseHeader(b); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "the peer speaks version 2 of the protocol, this program version 3") {
		t.Error(err)
	}
}

func TestDamagedOperationIsRefused(t *testing.T) {
	data := randomBlocks(2, 2)
	op := volume.Op{
		Kind: volume.OpWrite, Block: 5, Count: 2, Version: block.Version{Epoch: 1, N: 1}, Data: data, Sums: Sums(nil, data),
	}
	good := encodeOp(&op)
	for i := range 2000 {
		at := i
		if i >= HeaderSize+8 { // the header and the sums exhaustively, the data here and there
			at = rand.IntN(len(good))
		}
		bad := bytes.Clone(good)
		bad[at] ^= 1 << rand.IntN(8)
		r := NewReader(bytes.NewReader(bad))
		for r.Fill() == nil {
		}
		f, ok, err := r.Next()
		if ok && err == nil {
			var got volume.Op
			_, err = f.Op(&got, nil)
		}
		if ok && !errors.Is(err, ErrFormat) {
			t.Fatalf("a flipped bit in byte %d is not noticed: %v", at, err)
		}
	}
}

func TestMessages(t *testing.T) {
	list := volume.List{Epoch: 3, Generation: 2, Members: []block.GUID{block.NewGUID(), block.NewGUID()}}
	for _, want := range []volume.Message{
		volume.Claim{Promise: volume.Promise{Epoch: 3, Nonce: 1<<64 - 1}}, volume.Ping{At: 1 << 60, Lease: 1e9}, volume.Space{Full: true},
		volume.Pong{At: 1 << 60}, volume.Release{}, volume.Counted{},
		volume.Register{Report: volume.Report{GUID: block.NewGUID(), Name: "a", State: volume.State{Committed: list, Pending: &list}, Size: 1 << 40}},
		volume.SetList{Committed: list, Pending: &list}, volume.Progress{Attempt: 9, Done: 5, WaitingFor: "x"},
		volume.Pace{Attempt: 9, BytesPerSec: 1 << 25, For: "x"},
	} {
		b, err := AppendMessage(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(t, b).Message()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	for k, m := range kinds[1:] {
		if kindOf[reflect.TypeOf(m)] != uint8(k+1) {
			t.Errorf("%T is not kind %d", m, k+1)
		}
	}
}

func TestChunk(t *testing.T) {
	var versions, have [block.ChunkBlocks]block.Version
	var sums [block.ChunkBlocks]uint32
	var stored, unlisted [block.ChunkBlocks]bool
	base := block.Version{Epoch: 1, N: 3}
	want := Chunk{Index: 77, Scan: block.Version{Epoch: 2, N: 5000}, Versions: &versions, Sums: &sums, Stored: &stored, Unlisted: &unlisted}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range versions {
		sums[i] = block.ZeroSum
		if rnd.IntN(3) == 0 {
			unlisted[i] = rnd.IntN(2) == 0
			continue
		}
		versions[i] = block.Version{Epoch: 1 + rnd.Uint64N(2), N: rnd.Uint64N(5)}
		if stored[i] = rnd.IntN(4) > 0; !stored[i] {
			continue
		}
		data := randomBlocks(uint64(i), 1)
		sums[i] = block.Sum(data)
		if rnd.IntN(2) == 0 {
			want.DataOf = append(want.DataOf, uint16(i))
			want.Data = append(want.Data, data...)
		}
	}
	f := parse(t, AppendChunkRequest(nil, 5, 77, base, &versions))
	if index, err := f.ChunkRequest(&have); err != nil || index != 77 || have != versions || f.Tag != 5 || f.Version() != base {
		t.Fatalf("request: %d, %v", index, err)
	}
	b := append(AppendChunkReplyHead([]byte("x"), 5, &want)[1:], want.Data...)
	got := Chunk{
		Versions: new([block.ChunkBlocks]block.Version), Sums: new([block.ChunkBlocks]uint32), Stored: new([block.ChunkBlocks]bool),
		Unlisted: new([block.ChunkBlocks]bool),
	}
	if err := readOne(b).ChunkReply(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("reply: %v", err)
	}
	b[len(b)-1] ^= 4
	if err := readOne(b).ChunkReply(&got); !errors.Is(err, ErrFormat) {
		t.Fatalf("damaged data: %v", err)
	}
}

func readOne(b []byte) *Frame {
	r := NewReader(bytes.NewReader(b))
	for r.Fill() == nil {
	}
	f, _, _ := r.Next()
	return &f
}

func TestChangedAndErrors(t *testing.T) {
	list := []uint64{1, 5, 1 << 40}
	got, next, err := parse(t, AppendChangedReply(nil, list, AllListed)).ChangedReply(nil)
	if err != nil || next != AllListed || !reflect.DeepEqual(got, list) {
		t.Errorf("changed: %v, %d, %v", got, next, err)
	}
	var remote *RemoteError
	err = parse(t, AppendError(nil, TypeChunkReply, 3, CodeNotYet, "soon")).ChunkReply(&Chunk{})
	if !errors.As(err, &remote) || remote.Code != CodeNotYet || remote.Text != "soon" {
		t.Errorf("error: %v", err)
	}
	if _, err = parse(t, AppendReadError(nil, 3, 9, CodeMedium, "bad")).ReadReply(); !errors.As(err, &remote) || remote.Code != CodeMedium {
		t.Errorf("error: %v", err)
	}
}

// TestReader cuts a stream at random places; frames that were retained stay intact.
func TestReader(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var stream []byte
	var want []volume.Op
	for n := uint64(1); n <= 300; n++ {
		op := volume.Op{Kind: volume.OpDiscard, Block: n, Count: 1, Version: block.Version{Epoch: 1, N: n}}
		if rnd.IntN(3) > 0 {
			op.Kind, op.Count = volume.OpWrite, 1+rnd.Uint32N(4)
			if rnd.IntN(30) == 0 {
				op.Count = MaxBlocks / (1 + rnd.Uint32N(4))
			}
			op.Data = randomBlocks(n, int(op.Count))
			op.Sums = Sums(nil, op.Data)
		}
		want = append(want, op)
		stream = append(stream, encodeOp(&op)...)
	}
	for name, src := range map[string]io.Reader{
		"random": &stutter{bytes.NewReader(stream), rnd}, "whole": bytes.NewReader(stream), "dataerr": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		r := NewReader(src)
		got := make([]volume.Op, 0, len(want))
		var held []*block.Buffer
		for {
			err := r.Fill()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s, seed %d: %v", name, seed, err)
			}
			for {
				f, ok, err := r.Next()
				if err != nil {
					t.Fatalf("%s, seed %d: %v", name, seed, err)
				}
				if !ok {
					break
				}
				got = append(got, volume.Op{})
				if _, err := f.Op(&got[len(got)-1], nil); err != nil {
					t.Fatalf("%s, seed %d: %v", name, seed, err)
				}
				held = append(held, r.Retain())
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s, seed %d: %d operations of %d, or they differ", name, seed, len(got), len(want))
		}
		for _, b := range held {
			b.Release()
		}
		r.Close()
	}
}

// stutter reads a random number of bytes at a time.
type stutter struct {
	r   io.Reader
	rnd *rand.Rand
}

func (s *stutter) Read(b []byte) (int, error) {
	return s.r.Read(b[:1+s.rnd.IntN(min(len(b), 200<<10))])
}

// counted counts the releases of what an outbox was given.
type counted struct{ left chan struct{} }

func (c counted) Release() { c.left <- struct{}{} }

func pipe(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestOutbox sends far more than the socket takes at once, in pieces of all kinds: order is kept, nobody waits, and all
// memory is given back.
func TestOutbox(t *testing.T) {
	a, b := pipe(t)
	o, err := NewOutbox(a, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	rnd := rand.New(rand.NewPCG(3, 4))
	var want []byte
	owner := counted{make(chan struct{}, 1<<20)}
	owned := 0
	for i := range 3000 {
		data := randomBlocks(uint64(i), 1)[:1+rnd.IntN(block.Size)]
		want = append(want, data...)
		switch rnd.IntN(3) {
		case 0:
			o.AppendCopy(data)
		case 1:
			o.Append(data, owner)
			owned++
		case 2:
			o.AppendTwo(data[:1], data[1:], owner)
			owned++
		}
		if rnd.IntN(10) == 0 {
			o.Flush()
		}
	}
	o.Flush()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("what arrived differs: %v", err)
	}
	for range owned {
		select {
		case <-owner.left:
		case <-time.After(10 * time.Second):
			t.Fatal("a reference was not released")
		}
	}
	o.Wait(0, func() {})
}

// TestOutboxOverflow ends the connection of a peer that does not read, and gives all memory back.
func TestOutboxOverflow(t *testing.T) {
	a, _ := pipe(t)
	o, err := NewOutbox(a, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	owner := counted{make(chan struct{}, 1000)}
	data := randomBlocks(1, 16)
	for range 1000 {
		o.Append(data, owner)
		o.Flush()
	}
	if err := o.Err(); !errors.Is(err, ErrOverflow) {
		t.Fatalf("error is %v", err)
	}
	for range 1000 {
		select {
		case <-owner.left:
		case <-time.After(10 * time.Second):
			t.Fatal("a reference was not released")
		}
	}
}

// FuzzFrames feeds arbitrary bytes to every decoder.
func FuzzFrames(f *testing.F) {
	data := randomBlocks(1, 1)
	op := volume.Op{Kind: volume.OpWrite, Count: 1, Version: block.Version{Epoch: 1, N: 1}, Data: data, Sums: Sums(nil, data)}
	f.Add(encodeOp(&op))
	m, _ := AppendMessage(nil, volume.Claim{})
	f.Add(m)
	h, _ := AppendHello(nil, Hello{Replica: "r"})
	f.Add(h)
	var v [block.ChunkBlocks]block.Version
	f.Add(AppendChunkRequest(nil, 1, 2, block.Version{}, &v))
	f.Add(AppendChangedReply(nil, []uint64{1}, 2))
	chunk := Chunk{
		Versions: new([block.ChunkBlocks]block.Version), Sums: new([block.ChunkBlocks]uint32), Stored: new([block.ChunkBlocks]bool),
		Unlisted: new([block.ChunkBlocks]bool),
	}
	f.Add(AppendChunkReplyHead(nil, 1, &chunk))
	f.Add(AppendStage(nil, op.Version, []block.Staged{{Block: 1, Version: op.Version}}))
	stage, _ := AppendStageReply(nil, op.Version, []block.Staged{{Block: 1, Version: op.Version, Sum: op.Sums[0], Stored: true, Data: data}})
	f.Add(stage)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= HeaderSize { // make the checksums right, so that more than they is tested
			h := Header{
				Type: Type(b[2]), Flags: b[3], Length: uint32(len(b) - HeaderSize), N: le.Uint64(b[8:]), Epoch: le.Uint64(b[16:]),
				Block: le.Uint64(b[24:]), Count: le.Uint32(b[32:]), TableSum: block.Sum(b[HeaderSize:]),
			}
			h.Put(b)
		}
		r := NewReader(bytes.NewReader(b))
		defer r.Close()
		for r.Fill() == nil {
			for {
				fr, ok, err := r.Next()
				if err != nil {
					return
				}
				if !ok {
					break
				}
				var op volume.Op
				fr.Op(&op, nil)
				fr.Message()
				fr.Read()
				fr.ReadReply()
				fr.Hello()
				fr.HelloReply()
				fr.ChangedReply(nil)
				var have [block.ChunkBlocks]block.Version
				fr.ChunkRequest(&have)
				fr.ChunkReply(&chunk)
				fr.Stage()
				fr.StageReply(nil)
			}
		}
	})
}

func BenchmarkOp(b *testing.B) {
	data := randomBlocks(1, 1)
	op := volume.Op{Kind: volume.OpWrite, Count: 1, Version: block.Version{Epoch: 1, N: 1}, Data: data, Sums: Sums(nil, data)}
	frame := encodeOp(&op)
	b.ReportAllocs()
	var got volume.Op
	var sums []uint32
	for b.Loop() {
		PutOp(frame, &op)
		h, _ := ParseHeader(frame)
		f := Frame{h, frame[HeaderSize:]}
		sums, _ = f.Op(&got, sums[:0])
	}
}
