package volume

import (
	"encoding/json"
	"math"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

func TestCommonPoint(t *testing.T) {
	for _, tt := range []struct{ name, a, lastA, b, lastB, want string }{
		{"both empty", "", "0.0", "", "0.0", "0.0"},
		{"one empty", "", "0.0", "1@1", "1.5", "0.0"},
		{"same", "1@1", "1.5", "1@1", "1.5", "1.5"},
		{"one behind", "1@1", "1.3", "1@1", "1.5", "1.3"},
		{"behind by an epoch", "1@1", "1.3", "1@1,2@6", "2.9", "1.3"},
		{"tail beyond the next epoch", "1@1", "1.8", "1@1,2@6", "2.9", "1.5"},
		{"exactly at the end", "1@1", "1.5", "1@1,2@6", "2.9", "1.5"},
		{"two ends of one epoch", "1@1,2@6", "2.7", "1@1,3@4", "3.9", "1.3"},
		{"in a later epoch", "1@1,2@6,4@9", "4.20", "1@1,2@6,4@9", "4.12", "4.12"},
		{"epochs skipped differently", "1@1,3@6", "3.9", "1@1,2@6", "2.9", "1.5"},
		{"nothing in common", "1@1", "1.4", "2@1", "2.4", "0.0"},
		{"one ends before the shared epoch", "1@1,2@6", "1.3", "1@1,2@6", "2.9", "1.3"},
		{"same epoch, other number", "1@1,2@6", "2.9", "1@1,2@5", "2.9", "1.4"},
		{"trimmed differently", "2@3,4@6,5@9", "5.12", "1@1,2@3,4@6", "4.7", "4.7"},
		{"all that they share is trimmed", "4@6,5@9", "5.12", "1@1,2@3", "2.4", "0.0"},
		{"only the opening operation", "1@1,2@6", "2.6", "1@1,2@6", "2.9", "2.6"},
	} {
		a, b := parseHistory(tt.a), parseHistory(tt.b)
		la, lb := parseVersion(tt.lastA), parseVersion(tt.lastB)
		if got := CommonPoint(a, la, b, lb); got != parseVersion(tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
		if got := CommonPoint(b, lb, a, la); got != parseVersion(tt.want) {
			t.Errorf("%s, the other way round: %v, want %s", tt.name, got, tt.want)
		}
	}
}

// TestHistoryFits checks that the largest history leaves most of the 64 KiB of a pool's state record to the rest.
func TestHistoryFits(t *testing.T) {
	var s State
	for range 2 * maxHistory {
		s.History = s.History.with(EpochStart{Epoch: math.MaxUint64, First: math.MaxUint64, Lossy: true, Nonce: math.MaxUint64})
	}
	if b, err := json.Marshal(s); err != nil || len(b) > 32<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	s.Pulled = s.History
	if b, err := json.Marshal(s); err != nil || len(b) > 54<<10 {
		t.Errorf("%d bytes while it pulls, %v", len(b), err)
	}
}

// TestHistoriesOfTwoTargets: an entry without nonce is as it was; one with and one without are of two targets.
func TestHistoriesOfTwoTargets(t *testing.T) {
	for _, tt := range []struct {
		a, lastA, b, lastB, want string
		contradicts              bool
	}{
		{"1@1/7,2@6/8", "2.9", "1@1/7,2@6/8", "2.7", "2.7", false},
		{"1@1/7,2@6/8", "2.9", "1@1/7,2@6/9", "2.9", "1.5", true},
		{"1@1/7,2@6/8", "2.9", "1@1/7,2@5/9,3@9/9", "3.9", "1.4", true},
		{"1@1/7,2@6/8", "2.9", "1@1/7,3@6/9", "3.9", "1.5", false},
		{"1@1,2@6", "2.9", "1@1,2@6", "2.7", "2.7", false},
		{"1@1,2@6", "2.9", "1@1,2@6/9", "2.9", "1.5", true},
		{"1@1,2@6/8", "2.9", "1@1,2@6/8,4@8/9", "4.9", "2.7", false},
		{"1@1/7", "1.5", "1@1/8", "1.5", "0.0", true},
	} {
		a, b := parseHistory(tt.a), parseHistory(tt.b)
		if got := CommonPoint(a, parseVersion(tt.lastA), b, parseVersion(tt.lastB)); got != parseVersion(tt.want) {
			t.Errorf("%s and %s share %v, want %s", tt.a, tt.b, got, tt.want)
		}
		if got := a.contradicts(b); got != tt.contradicts || b.contradicts(a) != got {
			t.Errorf("%s and %s contradict each other: %v, want %v", tt.a, tt.b, got, tt.contradicts)
		}
	}
}

// TestOldState: a state that a program wrote which knew no nonces is read.
func TestOldState(t *testing.T) {
	var s State
	if err := json.Unmarshal([]byte(`{"promised":{"epoch":2,"nonce":9},"complete":true,"history":[{"epoch":1,"first":1},{"epoch":2,"first":6,"lossy":true}]}`), &s); err != nil {
		t.Fatal(err)
	}
	if want := (History{{Epoch: 1, First: 1}, {Epoch: 2, First: 6, Lossy: true}}); !slices.Equal(s.History, want) {
		t.Errorf("%+v, want %+v", s.History, want)
	}
}

// TestCommonPointTree checks what the base of a rebuild relies on: two histories share at least what each of them
// shares with a third.
func TestCommonPointTree(t *testing.T) {
	type life struct {
		h    History
		last block.Version
	}
	var lives []life
	for _, x := range [][2]string{
		{"1@1", "1.9"}, {"1@1,2@5", "2.8"}, {"1@1,3@7", "3.8"}, {"1@1,2@5,4@7", "4.9"}, {"1@1,2@5,4@7,6@9", "6.12"}, {"5@1", "5.3"}, {"", "0.0"},
	} {
		lives = append(lives, life{parseHistory(x[0]), parseVersion(x[1])})
	}
	common := func(a, b life) block.Version { return CommonPoint(a.h, a.last, b.h, b.last) }
	for _, a := range lives {
		for _, b := range lives {
			for _, c := range lives {
				least := common(a, b)
				if x := common(a, c); x.Less(least) {
					least = x
				}
				if common(b, c).Less(least) {
					t.Errorf("%v and %v share less than each shares with %v", b, c, a)
				}
			}
		}
	}
}
