package pool

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	engine "github.com/cstor-go/cstor/internal/pool"
)

// What a pool was writing when it failed may be nowhere: Linux takes pages that it could not write for clean, and what was on
// its way to a device that went away went with it. The replicas have acknowledged that. So when the pool is opened again their
// suspicion is recorded in it, as after a loss of power, before they are served. Until that is done it is noted on the node
// that the pool failed, in a file, for the next process: from the moment when the failure is noticed, whether the API server
// answers or not. The file has to outlive the process and not the machine, whose next boot makes replicas suspect anyway.

// failures is what is known of pools that failed and whose replicas are not suspect yet. This process' openings are numbered.
type failures struct {
	mu      sync.Mutex
	opening int  // the last one
	failed  int  // the newest one that failed
	settled int  // what failed up to this one, the replicas in the pool are suspect for
	kept    bool // the node has it that one failed
	why     string
}

func (a *Agent) failedFile() string { return filepath.Join(a.StateDir, a.Instance+".failed") }

// opening makes set fit for a pool that is about to be opened, and returns the opening's number.
func (a *Agent) opening(set *Settings) int {
	f := &a.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opening++
	n := f.opening
	set.Failed = func(cause error) { a.distrust(n, cause) }
	if set.Suspect = f.failed > f.settled; !set.Suspect && a.StateDir != "" {
		_, err := os.Stat(a.failedFile())
		set.Suspect = !errors.Is(err, os.ErrNotExist)
	}
	return n
}

// distrust notes that the pool failed, in that opening.
func (a *Agent) distrust(opening int, cause error) {
	f := &a.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	if opening <= f.settled {
		return
	}
	f.failed = max(f.failed, opening)
	if f.kept || a.StateDir == "" {
		return
	}
	err := os.WriteFile(a.failedFile(), []byte(cause.Error()+"\n"), 0o600)
	if f.kept = err == nil; f.kept {
		f.why = ""
	} else if why := err.Error(); why != f.why {
		f.why = why
		a.Log.Error("cannot note on the node that the pool failed: a process that is started before it is opened again will not know", "failure", cause, "err", err)
	}
}

// noticeFailure looks whether the pool that is open has failed.
func (a *Agent) noticeFailure() {
	if eng, _ := a.open(); eng != nil {
		if st := eng.Stats(); st.Health == engine.HealthFaulted {
			a.distrust(a.failures.opening, errors.New(st.Failure))
		}
	}
}

// trust notes that the replicas in the pool are suspect for whatever failed before that opening.
func (a *Agent) trust(opening int) {
	f := &a.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled = opening - 1
	if f.failed >= opening {
		return
	}
	f.kept = false
	if a.StateDir == "" {
		return
	}
	if err := os.Remove(a.failedFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.Log.Warn("cannot remove the note that the pool failed: its replicas will be suspect once more", "err", err)
	}
}
