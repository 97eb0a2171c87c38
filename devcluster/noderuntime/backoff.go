package noderuntime

import "time"

// A container that ends is started again after a delay that doubles with every failure. A kubelet goes from 10 s to
// 5 min and forgets after 10 min of running; a development cluster has less time to lose.
const (
	backoffBase  = 250 * time.Millisecond
	backoffMax   = 10 * time.Second
	backoffReset = 30 * time.Second
)

// backoff computes delays between attempts. The zero value is ready for use.
type backoff struct {
	next time.Duration
}

// after returns the delay to keep after an attempt that lasted ran.
func (b *backoff) after(ran time.Duration) time.Duration {
	if b.next == 0 || ran >= backoffReset {
		b.next = backoffBase
	}
	d := b.next
	b.next = min(2*b.next, backoffMax)
	return d
}
