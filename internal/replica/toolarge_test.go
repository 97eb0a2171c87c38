package replica

import (
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// TestStateTooLarge asks for more than the pool can record: the target is told so, and the replica goes on as it was.
func TestStateTooLarge(t *testing.T) {
	t.Parallel()
	s, _ := newTestServer(t)
	l := attachTo(t, s)
	first := accept(t, l)
	if m, ok := first.claim(1).(volume.Promised); !ok {
		t.Fatalf("claimed: %+v", m)
	}
	list := volume.List{Epoch: 1, Generation: 1}
	for range 3000 {
		list.Members = append(list.Members, block.NewGUID())
	}
	first.send(volume.SetList{Committed: list})
	if m, ok := first.next().(volume.Failed); !ok || !strings.Contains(m.Reason, "cannot be recorded") || !strings.Contains(m.Reason, "too large") || strings.Contains(m.Reason, errPool.Error()) {
		t.Fatalf("asked for a list that is too large: %+v", m)
	}

	second := accept(t, l)
	if st := second.report.State; len(st.Committed.Members) > 0 || st.Promised.Epoch != 1 {
		t.Fatalf("the replica says that it has become %+v", st)
	}
	if m, ok := second.claim(1).(volume.Promised); !ok {
		t.Fatalf("claimed again: %+v", m)
	}
	list.Members = list.Members[:3]
	second.send(volume.SetList{Committed: list})
	if m, ok := second.next().(volume.ListSet); !ok {
		t.Fatalf("asked for a list: %+v", m)
	}
}
