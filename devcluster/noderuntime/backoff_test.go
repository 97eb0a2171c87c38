package noderuntime

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	want := backoffBase
	for i := range 10 {
		if got := b.after(time.Second); got != want {
			t.Errorf("delay %d is %s, want %s", i, got, want)
		}
		want = min(2*want, backoffMax)
	}
	if got := b.after(backoffReset); got != backoffBase {
		t.Errorf("after a long run the delay is %s, want %s", got, backoffBase)
	}
	if got := b.after(0); got != 2*backoffBase {
		t.Errorf("the next delay is %s, want %s", got, 2*backoffBase)
	}
}
