package target

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

// after is what a target that has claimed the record writes next; id makes it different from all else.
func after(held Held, nonce, id uint64) volume.Record {
	c := held.Record
	c.Version++
	c.Epoch, c.Nonce, c.Cfg = c.Epoch+1, nonce, volume.ListID{Epoch: 1, Generation: id}
	return c
}

// claimed is an API server with a record that was written once, and what a target has read of it.
func claimed(t *testing.T) (*api, *Record, Held) {
	a := newAPI(t)
	r := a.record()
	outcome, held, err := r.Write(t.Context(), Held{}, volume.Record{Version: 1, Epoch: 1, Nonce: 7, List: &volume.List{Generation: 1}})
	if outcome != Written || err != nil {
		t.Fatal(outcome, err)
	}
	return a, r, held
}

func TestOutcomeOfAWrite(t *testing.T) {
	for name, c := range map[string]struct {
		reads, writes []fault
		want          Outcome
		applied       bool
	}{
		"nothing in the way":                  {nil, nil, Written, true},
		"a request is lost":                   {nil, []fault{dropped}, Written, true},
		"a reply is lost":                     {nil, []fault{lost}, Written, true},
		"a reply is lost, then reads":         {[]fault{dropped, fails, hangs, busy}, []fault{lost}, Written, true},
		"no answer":                           {nil, []fault{hangs, hangs}, Written, true},
		"no answer, and it was done":          {nil, []fault{hangsOn}, Written, true},
		"an error":                            {nil, []fault{fails, fails}, Written, true},
		"an error, and it was done":           {nil, []fault{failsOn}, Written, true},
		"no time":                             {nil, []fault{busy, busy}, Written, true},
		"refused":                             {nil, []fault{forbids}, Refused, false},
		"refused after there was no time":     {nil, []fault{busy, forbids}, Refused, false},
		"refused after it was done":           {[]fault{past}, []fault{lost, forbids}, Written, true},
		"refused while it may still be done":  {nil, []fault{late, forbids}, Written, true},
		"done, and the answers are of before": {[]fault{past, past}, []fault{lost}, Written, true},
		"it takes long, and is done twice":    {[]fault{late}, []fault{late, late}, Written, true},
	} {
		t.Run(name, func(t *testing.T) {
			a, r, held := claimed(t)
			want := after(held, 7, 1)
			a.next(c.reads, c.writes)
			outcome, now, err := r.Write(t.Context(), held, want)
			if outcome != c.want || (err != nil) != (outcome == Refused) {
				t.Fatalf("%s, %v, want %s", outcome, err, c.want)
			}
			a.settle()
			if got := len(a.history) == 2 && a.history[1].Equal(want); got != c.applied || len(a.history) > 2 {
				t.Fatalf("the record was %+v", a.history)
			}
			if c.want != Written {
				return
			}
			if !now.Equal(want) {
				t.Errorf("found %+v, want %+v", now.Record, want)
			}
			// What was found is what the next write is made from.
			if outcome, _, err := r.Write(t.Context(), now, after(now, 7, 2)); outcome != Written {
				t.Errorf("the next: %s %v", outcome, err)
			}
		})
	}
}

func TestARefusalIsNotAskedForAgain(t *testing.T) {
	a, r, held := claimed(t)
	a.next(nil, []fault{forbids})
	if outcome, _, err := r.Write(t.Context(), held, after(held, 7, 1)); outcome != Refused || !strings.Contains(err.Error(), "forbidden") || a.writes != 2 {
		t.Errorf("%s %v after %d requests", outcome, err, a.writes)
	}
	if outcome, _, _ := r.Write(t.Context(), held, held.Record); outcome != Refused || a.writes != 2 {
		t.Errorf("a version that does not follow: %s after %d requests", outcome, a.writes)
	}
}

func TestConflictShowsWhatWasWrittenInstead(t *testing.T) {
	for name, faults := range map[string][]fault{"at once": nil, "after a doubt": {dropped}, "late": {late}} {
		t.Run(name, func(t *testing.T) {
			a, r, held := claimed(t)
			other := after(held, 8, 5)
			if outcome, _, err := a.record().Write(t.Context(), held, other); outcome != Written {
				t.Fatal(outcome, err)
			}
			a.next([]fault{past}, faults)
			outcome, now, err := r.Write(t.Context(), held, after(held, 7, 1))
			if outcome != Conflict || err != nil || !now.Equal(other) {
				t.Errorf("%s %v %+v", outcome, err, now.Record)
			}
			a.settle()
			if len(a.history) != 2 {
				t.Errorf("written all the same: %+v", a.history)
			}
		})
	}
}

// A write that was not answered lands after the old value was read (H26).
func TestTheOldValueResolvesNoDoubt(t *testing.T) {
	a, r, held := claimed(t)
	ctx, cancel := context.WithCancel(t.Context())
	want := after(held, 7, 1)
	reads := 0
	a.mu.Lock()
	a.fault = func(write bool) fault {
		if write {
			return late
		}
		if reads++; reads == 3 {
			cancel()
		}
		return works
	}
	a.mu.Unlock()
	if outcome, _, err := r.Write(ctx, held, want); outcome != Unknown || err == nil {
		t.Fatalf("%s %v while the write is under way", outcome, err)
	}
	a.mu.Lock()
	a.oldest()
	a.fault = nil
	a.mu.Unlock()
	if outcome, now, err := r.Write(t.Context(), held, want); outcome != Written || !now.Equal(want) {
		t.Errorf("%s %v", outcome, err)
	}
	a.settle()
	if len(a.history) != 2 {
		t.Errorf("written more than once: %+v", a.history)
	}
}

// The object was changed without its content; an answer of before that is not a conflict.
func TestALabelIsNoDoubtEither(t *testing.T) {
	a, r, _ := claimed(t)
	a.label()
	held, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.next([]fault{past, past}, []fault{late, late})
	if outcome, _, err := r.Write(t.Context(), held, after(held, 7, 1)); outcome != Written {
		t.Errorf("%s %v", outcome, err)
	}
	held, _ = r.Read(t.Context())
	a.label()
	if outcome, now, err := r.Write(t.Context(), held, after(held, 7, 2)); outcome != Conflict || now.Version != held.Version {
		t.Errorf("%s %v: it was changed since", outcome, err)
	}
}

func TestAnswersFromThePastAreNotBelieved(t *testing.T) {
	a, r, held := claimed(t)
	_, newest, _ := r.Write(t.Context(), held, after(held, 7, 1))
	a.next([]fault{past, past, fails, hangs}, nil)
	if got, err := r.Read(t.Context()); err != nil || !got.Equal(newest.Record) {
		t.Errorf("%+v %v", got.Record, err)
	}
	a.mu.Lock()
	a.fault = func(bool) fault { return past } // a restored backup
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := r.Read(ctx); err == nil {
		t.Errorf("%+v is older than what was seen", got.Record)
	}
}

// Two targets write over an API server that does everything wrong that it may. What an outcome says must be so then, and
// stay so when everything that is under way has been done.
func TestOutcomesAreTrue(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	count := map[Outcome]int{}
	for range 15 {
		a := newAPI(t)
		targets := []*Record{a.record(), a.record()}
		found := make([]Held, len(targets))
		type write struct {
			want    volume.Record
			outcome Outcome
			done    int // changes until the outcome was known
		}
		var writes []write
		a.fault = func(write bool) fault {
			if len(a.late) > 0 && rnd.IntN(3) == 0 {
				a.oldest()
			}
			if rnd.IntN(2) > 0 {
				return works
			}
			return fault(rnd.IntN(int(faults)))
		}
		for id := range 12 {
			i := rnd.IntN(len(targets))
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(100))*time.Millisecond)
			if now, err := targets[i].Read(ctx); err == nil && rnd.IntN(4) > 0 {
				found[i] = now
			}
			want := after(found[i], uint64(i+1), uint64(id+1))
			outcome, now, err := targets[i].Write(ctx, found[i], want)
			cancel()
			if (err == nil) != (outcome == Written || outcome == Conflict) {
				t.Errorf("%s with %v", outcome, err)
			}
			if outcome == Written {
				found[i] = now
			}
			a.mu.Lock()
			writes = append(writes, write{want, outcome, len(a.history)})
			a.mu.Unlock()
		}
		a.settle()
		a.mu.Lock()
		for i, c := range a.history {
			if c.Version != uint64(i+1) {
				t.Errorf("change %d has version %d", i+1, c.Version)
			}
		}
		for _, w := range writes {
			count[w.outcome]++
			first, times := len(a.history), 0
			for i, c := range a.history {
				if c.Equal(w.want) {
					first, times = min(first, i), times+1
				}
			}
			switch {
			case times > 1:
				t.Errorf("written %d times: %+v", times, w.want)
			case w.outcome == Written && first >= w.done, w.outcome == Refused && times > 0, w.outcome == Conflict && times > 0 && first >= w.done:
				t.Errorf("%s, and it became change %d of %d, %d of them before: %+v", w.outcome, first+1, len(a.history), w.done, w.want)
			}
		}
		a.mu.Unlock()
	}
	t.Log(count)
	for _, o := range []Outcome{Unknown, Written, Conflict, Refused} {
		if count[o] == 0 {
			t.Errorf("no write was %s: the test shows nothing", o)
		}
	}
}
