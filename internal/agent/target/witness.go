package target

import (
	"context"
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/volume"
)

// Witness is a volume's record as the target uses it: what it was last found to hold is remembered here, and is what the next
// write is made from. It implements Record of package internal/target.
type Witness struct {
	Record *Record

	mu   sync.Mutex
	held Held
}

// Read returns what the record holds now.
func (w *Witness) Read(ctx context.Context) (volume.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Record.patience())
	defer cancel()
	now, err := w.Record.Read(ctx)
	if err != nil {
		return volume.Record{}, err
	}
	w.note(now)
	return now.Record, nil
}

// Write changes the record from version from, as it was found, to want, and returns what it is when it has changed. An error
// leaves open whether it is written, now or later, unless it wraps volume.ErrNotWritten.
func (w *Witness) Write(ctx context.Context, version uint64, want volume.Record) (volume.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Record.patience())
	defer cancel()
	w.mu.Lock()
	from := w.held
	w.mu.Unlock()
	if from.Version != version {
		return from.Record, nil // it has changed since
	}
	outcome, now, err := w.Record.Write(ctx, from, want)
	switch {
	case outcome == Written, outcome == Conflict && now.object != nil:
		w.note(now)
		return now.Record, nil
	case outcome == Conflict:
		return volume.Record{}, fmt.Errorf("record of volume %s: somebody else has changed it, and it cannot be read now: %w", w.Record.Owner.Name, volume.ErrNotWritten)
	case outcome == Refused:
		return volume.Record{}, fmt.Errorf("%w: %w", volume.ErrNotWritten, err)
	}
	return volume.Record{}, err
}

// note remembers what was found, unless it was found before what is remembered.
func (w *Witness) note(now Held) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.after(w.held) {
		w.held = now
	}
}
