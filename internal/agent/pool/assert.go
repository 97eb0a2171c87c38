package pool

import "time"

// assertion is what was last said in a field that the operator may overrule, which it does when it does not hear from
// this process. Then it is said again, but not at once: the operator has to see first that the process is back.
type assertion[T comparable] struct {
	value T
	at    time.Time
}

// due reports whether value may be said now.
func (a *assertion[T]) due(value T, now time.Time) bool {
	return value != a.value || now.Sub(a.at) >= statusEvery
}

// said notes that value was said.
func (a *assertion[T]) said(value T, now time.Time) { a.value, a.at = value, now }
