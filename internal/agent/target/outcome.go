package target

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/volume"
)

// Outcome is what became of a write of the record: exactly one of these.
type Outcome int

const (
	// Unknown: it may be written, or still be written later. Only writing the same again, from the same, tells more.
	Unknown Outcome = iota
	// Written: the record holds it.
	Written
	// Conflict: the record has changed, and is what was found; this can not be written into it any more.
	Conflict
	// Refused: it is not written and never will be: the API server does not allow it.
	Refused
)

func (o Outcome) String() string { return [...]string{"unknown", "written", "conflict", "refused"}[o] }

// Write changes the record from what it was found to hold to want, whose version is higher. It tries until the outcome
// is certain or ctx ends, and returns what the record was found to hold then; after a Conflict nothing, if it could not be
// read. The error says what stood in the way; it is nil for Written and Conflict.
//
// An attempt that was not answered, or answered by an error of the server, may have been carried out, and may be carried
// out much later. Then only a record that has changed tells: every attempt is made for one revision, and at another none
// is taken any more. As long as the record is what it was the same is written again, by which it changes. An answer from
// the past, below what has been seen, says nothing.
func (r *Record) Write(ctx context.Context, from Held, want volume.Record) (Outcome, Held, error) {
	if want.Version <= from.Version {
		return Refused, from, fmt.Errorf("record of volume %s: version %d is not above %d", r.Owner.Name, want.Version, from.Version)
	}
	doubt := false // an attempt may have been carried out, or be carried out later
	for pause := r.pause(); ; {
		certain := Unknown // the outcome, even if the record cannot be read
		held, err := r.write(ctx, from, want)
		switch {
		case err == nil:
			return Written, held, nil
		case isConflict(err):
			if !doubt {
				certain = Conflict
			}
		case isRefusal(err):
			if !doubt {
				return Refused, from, err
			}
		case apierrors.IsTooManyRequests(err): // it was not looked at
		default:
			doubt = true
		}
		now, readErr := r.get(ctx)
		switch {
		case readErr != nil:
			err = errors.Join(err, readErr)
		case !now.after(from):
		case now.Record.Equal(want):
			return Written, now, nil
		default:
			return Conflict, now, nil
		}
		if !pause.sleep(ctx) {
			if certain == Conflict {
				return Conflict, Held{}, nil
			}
			return Unknown, from, err
		}
	}
}

// after reports whether h was found after from, in a record that changed in between, and not in one from the past. Its
// version tells; one that others gave a label, or the like, is known by the revision.
func (h Held) after(from Held) bool {
	if h.object == nil || h.Version != from.Version || from.object == nil {
		return h.object != nil && h.Version >= from.Version
	}
	now, err1 := strconv.ParseUint(h.revision(), 10, 64)
	then, err2 := strconv.ParseUint(from.revision(), 10, 64)
	return err1 == nil && err2 == nil && now > then
}

func isConflict(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// isRefusal reports whether the API server says that it has not done it, and would not do it later either.
func isRefusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsUnauthorized(err) ||
		apierrors.IsMethodNotSupported(err) || apierrors.IsRequestEntityTooLargeError(err)
}

// pause is the time between two attempts: about twice as long each time, and never the same for two targets.
type pause struct{ next time.Duration }

func (r *Record) pause() *pause { return &pause{2 * cmp.Or(r.pauseMin, recordPauseMin)} }

// sleep waits, and reports false when ctx ends.
func (p *pause) sleep(ctx context.Context) bool {
	d := p.next/2 + rand.N(p.next/2)
	p.next = min(2*p.next, recordPauseMax)
	return kube.Sleep(ctx, d) && ctx.Err() == nil
}
