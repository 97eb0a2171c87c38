package target

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/wire"
)

// TestAcksOutOfOrder has two acknowledgements come with one read, the older one last, as a replica's stream and its
// flusher may send them: nothing that either of them says may be lost, since nobody says it again.
func TestAcksOutOfOrder(t *testing.T) {
	var stream []byte
	for _, h := range []wire.Header{wire.Ack(16, 16), wire.Ack(64, 0), wire.Ack(16, 12)} {
		b := make([]byte, wire.HeaderSize)
		h.Put(b)
		stream = append(stream, b...)
	}
	r := wire.NewReader(bytes.NewReader(stream))
	defer r.Close()
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	var events []event
	for {
		f, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if events, err = appendEvent(events, &f, r); err != nil {
			t.Fatal(err)
		}
	}
	if len(events) != 1 || events[0].applied != 64 || events[0].stable != 16 {
		t.Errorf("%+v, want one acknowledgement of 64, 16 of them stable", events)
	}
}

// TestCloseWithoutRegistration closes a target while a connection has not said who it is.
func TestCloseWithoutRegistration(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tgt := New(Config{Volume: "v", Size: 1 << 20, ReplicaListen: l, Record: &memoryRecord{}, Log: slog.New(slog.DiscardHandler)})
	ended := make(chan struct{})
	go func() { tgt.Serve(context.Background()); close(ended) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	next, err := net.Dial("tcp", l.Addr().String()) // accepted after conn, and closed for what it says
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	next.Write(bytes.Repeat([]byte{0xff}, 4096))
	if n, err := next.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d bytes for a frame of rubbish", n)
	}
	start := time.Now()
	tgt.Close()
	<-ended
	if d := time.Since(start); d > registerTimeout/2 {
		t.Errorf("closing took %v", d)
	}
}
