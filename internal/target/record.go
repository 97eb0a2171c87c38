package target

import (
	"context"
	"errors"
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

// recordPatience is how long the record may take to be read or written, until the core decides anew what it wants of it.
const recordPatience = time.Second

// recordOp reads or writes the record and tells the core what came of it. It does so for whatever core there is then.
func (t *Target) recordOp(op volume.RecordOp) {
	ctx, cancel := context.WithTimeout(t.ctx, recordPatience)
	defer cancel()
	var is volume.Record
	var err error
	if op.Want == nil {
		is, err = t.cfg.Record.Read(ctx)
	} else {
		is, err = t.cfg.Record.Write(ctx, op.From, *op.Want)
	}
	now := t.enter()
	defer t.leave()
	switch {
	case t.ctx.Err() != nil:
	case err == nil:
		t.failing = ""
		t.core.RecordIs(now, op.ID, is, op.Want != nil)
	default:
		if why := err.Error(); why != t.failing {
			t.failing = why
			t.log.Warn("cannot use the volume's record, trying again", "write", op.Want != nil, "error", err)
		}
		t.core.RecordFailed(now, op.ID, errors.Is(err, volume.ErrNotWritten), err.Error())
	}
}
