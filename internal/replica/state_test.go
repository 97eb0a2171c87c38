package replica

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
	"github.com/cstor-go/cstor/internal/volume"
)

// FuzzState: what a pool has as a replica's state record is refused, or is the same when it is written and read again.
// It takes no more memory than its size accounts for.
func FuzzState(f *testing.F) {
	list := volume.List{Epoch: 3, Generation: 2, Members: []block.GUID{block.NewGUID(), block.NewGUID()}}
	for _, st := range []volume.State{
		{}, {Committed: list, Complete: true, CompleteAt: block.Version{Epoch: 3, N: 9}},
		{Pending: &list, Base: block.Version{Epoch: 1, N: 1}, History: volume.History{{Epoch: 1, First: 1}, {Epoch: 3, First: 7}}, BootID: "x"},
		{CompleteAt: block.Version{Epoch: 3, N: 9}, Ambiguous: true, History: volume.History{{Epoch: 3, First: 7, Nonce: 8}}, Pulled: volume.History{{Epoch: 3, First: 7, Nonce: 9}}},
		{Committed: list, Place: volume.Place{ReplicaID: "42", Target: "10.0.0.9:6060"}},
	} {
		b, err := json.Marshal(st)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"history":[{},{},{}],"pending":{"members":[]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var st volume.State
		var err error
		if n := memory.Taken(func() { st, err = decodeState(b) }); n > 64<<10+128*uint64(len(b)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		c, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeState(c); err != nil || !reflect.DeepEqual(again, st) {
			t.Fatalf("%+v became %+v, %v", st, again, err)
		}
	})
}
