package pool

import (
	"sync"
	"sync/atomic"
)

// seizable is a lock whose holder may be kept by a device that hangs. When the pool fails, which it does because of such a
// device too, the lock is taken away from a holder who is in a device: everybody else goes on then, and finds that the pool
// has failed. What the lock guards is left as the holder left it when he went there.
type seizable struct {
	sync.Mutex
	where atomic.Uint32
}

const (
	holderHere   = iota // or there is none
	holderAway          // in a device
	holderSeized        // in a device, and the lock has been taken away
)

// away lets the holder do something that may take for ever. He has the lock again when it returns. When the pool has
// failed by then the error says so.
func (l *seizable) away(p *Pool, do func() error) error {
	if !l.where.CompareAndSwap(holderHere, holderAway) { // it has been taken away from an earlier holder, who is away still
		return p.failure()
	}
	err := p.failure() // it may have come too early to take the lock away
	if err == nil {
		err = do()
	}
	if l.back() && err == nil {
		err = p.failure()
	}
	return err
}

// back reports whether the lock had been taken away.
func (l *seizable) back() bool {
	if l.where.CompareAndSwap(holderAway, holderHere) {
		return false
	}
	l.Lock()
	l.where.Store(holderHere)
	return true
}

// seize takes the lock away from a holder who is away. The pool has failed.
func (l *seizable) seize() {
	if l.where.CompareAndSwap(holderAway, holderSeized) {
		l.Unlock()
	}
}
