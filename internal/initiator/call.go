package initiator

import (
	"context"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// CommandError is a command that ended with a status other than GOOD. It unwraps to the error of package block that it
// stands for, if there is one.
type CommandError struct {
	Op     uint8 // operation code
	Status scsi.Status
	Sense  scsi.Sense
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("SCSI command %#02x: status %#02x, %v", e.Op, uint8(e.Status), e.Sense)
}

func (e *CommandError) Unwrap() error {
	switch {
	case e.Status == scsi.Busy, e.Status == scsi.TaskSetFull:
		return block.ErrRetry
	case e.Sense.Is(scsi.SpaceFailed):
		return block.ErrNoSpace
	case e.Sense.Is(scsi.WritesLost):
		return block.ErrLost
	case e.Sense.Is(scsi.UnrecoveredRead):
		return block.ErrMedium
	}
	return nil
}

// Result is the outcome of a SCSI command or of a task management function.
type Result struct {
	Status    scsi.Status
	Sense     scsi.Sense
	Data      []byte
	Residual  int
	Overflow  bool
	Underflow bool
	Response  byte // of a task management function
}

// Err returns the error that the status stands for.
func (r *Result) Err() error {
	if r.Status == scsi.Good {
		return nil
	}
	return &CommandError{Status: r.Status, Sense: r.Sense}
}

// Call is a command that was begun.
type Call struct {
	tag  uint32 // task tag, once sent
	raw  bool   // the caller wants every status as it comes
	once bool   // ends with the connection instead of being sent again
	done chan struct{}
	res  Result
	err  error
}

func (c *Call) end(res Result, err error) {
	select {
	case <-c.done:
	default:
		c.res, c.err = res, err
		close(c.done)
	}
}

// Wait returns the outcome of the command.
func (c *Call) Wait(ctx context.Context) (Result, error) {
	select {
	case <-c.done:
		return c.res, c.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// Begin sends a SCSI command with any CDB of up to 16 bytes; it may send out and read up to in bytes. Every status,
// unit attentions included, is reported to the caller. The command ends with the connection.
func (s *Session) Begin(cdb, out []byte, in int) *Call {
	return s.begin(pdu.Command, func(c *command) {
		copy(c.cdb[:], cdb)
		c.out, c.inLen = out, in
		c.call.raw, c.call.once = true, true
	})
}

// begin queues a command, or sends it at once when it is not a SCSI command.
func (s *Session) begin(kind pdu.Opcode, fill func(c *command)) *Call {
	call := &Call{done: make(chan struct{})}
	s.mu.Lock()
	c := s.newCommand(kind)
	c.call = call
	fill(c)
	l := s.link
	switch {
	case s.err != nil:
		s.end(c, Result{}, s.err)
	case kind == pdu.Command:
		s.queue = append(s.queue, c)
		if l != nil {
			s.send()
		}
	case l == nil || len(s.idle) == 0:
		s.end(c, Result{}, ErrDisconnected)
	default:
		s.sendNow(l, c)
	}
	s.mu.Unlock()
	if l != nil {
		l.flush()
	}
	return call
}

// Command is Begin and Wait, but unit attentions are passed over: the command is sent again.
func (s *Session) Command(ctx context.Context, cdb, out []byte, in int) (Result, error) {
	for {
		r, err := s.Begin(cdb, out, in).Wait(ctx)
		if err != nil || !r.Sense.UnitAttention() {
			return r, err
		}
	}
}

// Manage sends a task management function (RFC 7143 11.5) about a command, or with a nil call about the whole unit. The
// Result has the target's response. Commands of Begin that the function aborted end with ErrAborted; requests are sent
// again.
func (s *Session) Manage(function byte, about *Call) *Call {
	return s.begin(pdu.TaskMgmt, func(c *command) {
		c.fn, c.ref = function, pdu.NoTag
		if about != nil {
			c.ref = about.tag
		}
	})
}

// aborted ends what a task management function that is complete has aborted: commands that were sent before it. The
// lock is held.
func (s *Session) aborted(by *command) {
	for _, c := range s.slots {
		switch {
		case c == nil || c.kind != pdu.Command || !pdu.Before(c.sn, by.sn) || by.fn == pdu.AbortTask && c.tag != by.ref:
		case c.call != nil:
			s.end(c, Result{}, ErrAborted)
		default:
			s.again(c)
		}
	}
}

// Ping sends a NOP-Out and waits for the answer.
func (s *Session) Ping(ctx context.Context) error {
	_, err := s.begin(pdu.NopOut, func(*command) {}).Wait(ctx)
	return err
}

func (s *Session) logout(ctx context.Context) {
	s.begin(pdu.LogoutReq, func(*command) {}).Wait(ctx)
}

// waiter is a block.Client for a single request.
type waiter chan error

func (w waiter) Complete(batch []*block.Request) { w <- batch[0].Err }

// do executes one request.
func (s *Session) do(ctx context.Context, r *block.Request) error {
	w := make(waiter, 1)
	r.Client = w
	s.Submit([]*block.Request{r})
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return ctx.Err() // the request goes on without us
	}
}

// ReadAt reads len(p) bytes at a byte offset; both are multiples of the sector size.
func (s *Session) ReadAt(ctx context.Context, p []byte, offset int64) error {
	r := &block.Request{Op: block.Read, Offset: offset, Length: int64(len(p))}
	if err := s.do(ctx, r); err != nil {
		return err
	}
	copy(p, r.Data)
	r.Buf.Release()
	return nil
}

// WriteAt writes p at a byte offset; with fua it returns when the data is on stable media. When ctx ends early, p
// must not be changed any more.
func (s *Session) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	return s.do(ctx, &block.Request{Op: block.Write, FUA: fua, Offset: offset, Length: int64(len(p)), Data: p})
}

// Flush makes everything that has completed stable.
func (s *Session) Flush(ctx context.Context) error {
	return s.do(ctx, &block.Request{Op: block.Flush})
}

// Discard unmaps the whole 4 KiB blocks inside a byte range.
func (s *Session) Discard(ctx context.Context, offset, length int64) error {
	return s.do(ctx, &block.Request{Op: block.Discard, Offset: offset, Length: length})
}

// WriteZeroes makes a byte range read as zeroes.
func (s *Session) WriteZeroes(ctx context.Context, offset, length int64) error {
	return s.do(ctx, &block.Request{Op: block.WriteZeroes, Offset: offset, Length: length})
}
