package main

import (
	"context"
	"log/slog"
	"testing"

	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// A pool that failed is closed and opened again in the same process.
func TestPoolIsServedAgain(t *testing.T) {
	ctx, fail := context.WithCancelCause(t.Context())
	defer fail(nil)
	server := &replicaServer{listen: "127.89.7.1", log: slog.New(slog.DiscardHandler), fail: fail}
	mem := disk.NewMem("disk", 64<<20)
	p, err := engine.Create([]engine.Group{{Kind: raid.Stripe, Devices: []disk.Device{mem}}}, engine.Config{Name: "p", Owner: "o"}, engine.Options{})
	for range 3 {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.serve(p); err != nil {
			t.Fatal(err)
		}
		server.stop()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		mem.Reopen()
		p, err = engine.Open([]disk.Device{mem}, engine.Options{})
	}
	if err == nil {
		err = p.Close()
	}
	if err != nil {
		t.Error(err)
	}
	if err := context.Cause(ctx); err != nil {
		t.Errorf("the process ends: %v", err)
	}
}
