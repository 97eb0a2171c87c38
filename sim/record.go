package sim

import "github.com/cstor-go/cstor/internal/volume"

// recordOp reads or writes the volume's record, by compare-and-swap. The target may die at any point of it.
func (t *target) recordOp(op volume.RecordOp) {
	w := t.w
	w.after(w.between(0, 15*ms), nil, func() {
		if op.Want != nil && op.Want.Version == w.record.Version+1 {
			w.logf("record written: %+v", *op.Want)
			w.record = *op.Want
		}
		is := w.record
		w.after(w.between(0, 15*ms), &t.process, func() { t.core.RecordIs(t.clock(w), op.ID, is, op.Want != nil); t.ready() })
	})
}
