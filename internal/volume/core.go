package volume

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Core is the target's side of one volume.
type Core struct{}

// NewCore returns the core of a target that has just started.
func NewCore(nonce uint64, size int64, s Settings, d Desired) *Core { return &Core{} }

// Connect tells that a replica connected; r is its first message.
func (c *Core) Connect(now time.Duration, id SessionID, r Register) {}

// Disconnect tells that a session's connection is gone.
func (c *Core) Disconnect(now time.Duration, id SessionID) {}

// Step takes any message but Register.
func (c *Core) Step(now time.Duration, id SessionID, m Message) {}

// Ack takes a cumulative acknowledgement.
func (c *Core) Ack(now time.Duration, id SessionID, applied, stable uint64) {}

// Recorded tells what the volume's record holds.
func (c *Core) Recorded(now time.Duration, l List) {}

// Want takes what the control plane wants.
func (c *Core) Want(now time.Duration, d Desired) {}

// Tick lets time pass.
func (c *Core) Tick(now time.Duration) {}

// Propose takes an operation.
func (c *Core) Propose(now time.Duration, op *Op) {}

// Read takes a read.
func (c *Core) Read(now time.Duration, r *ReadOp) {}

// ReadReply tells that a read's reply came.
func (c *Core) ReadReply(now time.Duration, id SessionID, r *ReadOp, err error) {}

// Flush takes a flush.
func (c *Core) Flush(now time.Duration, tag any) {}

// Ready returns what is to be done, nil if nothing.
func (c *Core) Ready() *Ready { return nil }

// Status describes the volume.
func (c *Core) Status() Status { return Status{} }

var _ block.GUID
