package target

import (
	"errors"

	"github.com/cstor-go/cstor/internal/volume"
)

// recordOp reads or writes the record and tells the core what came of it. It does so for whatever core there is then.
func (t *Target) recordOp(op volume.RecordOp) {
	var is volume.Record
	var err error
	if op.Want == nil {
		is, err = t.cfg.Record.Read(t.ctx)
	} else {
		is, err = t.cfg.Record.Write(t.ctx, op.From, *op.Want)
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
