package pool

import (
	"errors"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// upkeep is what goes on in the background for the devices: resilvers, scrubs, the ends of replacements.
//
// change is the first in the order of the pool's locks, mu the last.
type upkeep struct {
	change sync.Mutex // one change of what the pool consists of at a time; guards devs, leavers, and disks being closed
	leave  []leaver

	kick    chan struct{}
	stopped chan struct{}
	now     func() time.Time
	nap     func(time.Duration) // nil: time passes by itself; set by tests

	mu       sync.Mutex // guards the rest
	idle     *sync.Cond
	turns    uint64 // begun
	rested   uint64 // the last turn at the end of which there was nothing to do
	scrub    scrubTask
	resilver task
	retry    backoff
	damage   []Damage

	reads, writes uint64 // of users, as of the last step; only the background looks
}

// backoff is when to try again what did not work: at once, since what was in the way may be over, and then after longer
// and longer pauses.
type backoff struct {
	next  time.Time
	pause time.Duration
}

const (
	firstPause = time.Second
	lastPause  = 10 * time.Minute
)

func (b *backoff) failed(now time.Time) {
	b.next = now.Add(b.pause)
	b.pause = min(max(2*b.pause, firstPause), lastPause)
}

func (u *upkeep) init() {
	u.kick, u.stopped, u.now = make(chan struct{}, 1), make(chan struct{}), time.Now
	u.idle = sync.NewCond(&u.mu)
}

// wake lets the background look at once whether there is something to do.
func (u *upkeep) wake() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

var (
	errInterrupted = errors.New("there is something more urgent")
	// errAgain means that not all could be done that was to be done.
	errAgain = errors.New("not complete")
)

// keepUp runs until Close.
func (p *Pool) keepUp() {
	u := &p.upkeep
	defer func() {
		u.mu.Lock()
		u.idle.Broadcast()
		u.mu.Unlock()
		close(u.stopped)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-p.quit:
			return
		case <-u.kick:
		case <-timer.C:
		}
		u.mu.Lock()
		u.turns++
		turn := u.turns
		u.mu.Unlock()
		again, idle := time.Hour, true
		if p.failure() == nil {
			if first {
				u.change.Lock()
				p.takeRoom()
				u.change.Unlock()
			}
			again, idle = p.turn()
		}
		u.mu.Lock()
		if idle {
			u.rested = turn
			u.idle.Broadcast()
		}
		u.mu.Unlock()
		timer.Reset(again)
	}
}

// turn does the most urgent of what there is to do. It returns after what time to look again, and whether there is
// nothing to do until then.
func (p *Pool) turn() (again time.Duration, idle bool) {
	p.closeOut()
	if !p.endReplacements() {
		return time.Second / 10, false
	}
	wait, due := p.resilverDue()
	switch {
	case due:
		p.resilver()
		return 0, false
	case p.scrubDue():
		p.scrub()
		return 0, false
	}
	u := &p.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	if every := p.opt.ScrubEvery; every > 0 && !u.scrub.active() {
		wait = min(wait, max(u.scrub.base.Add(every).Sub(u.now()), time.Second))
	}
	return min(wait, time.Hour), true
}

// rest waits until the background has nothing to do.
func (p *Pool) rest() {
	u := &p.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	for want := u.turns + 1; u.rested < want && p.usable() == nil; {
		u.wake()
		u.idle.Wait()
	}
}

// stepper returns what a walk calls after its steps: it keeps the rate, lets users go first, and ends the walk when
// over says so.
func (p *Pool) stepper(rate func() int64, share int, over func() error) func(n int64) error {
	u := &p.upkeep
	last := u.now()
	return func(n int64) error {
		if p.closed.Load() {
			return ErrClosed
		}
		if err := p.failure(); err != nil {
			return err
		}
		if n == 0 {
			return over()
		}
		took := u.now().Sub(last)
		pause := time.Duration(0)
		if r := rate(); r > 0 {
			pause = time.Duration(float64(n)/float64(r)*float64(time.Second)) - took
		}
		if reads, writes := p.count.blocksRead.Load(), p.count.blocksWritten.Load(); reads != u.reads || writes != u.writes {
			u.reads, u.writes = reads, writes
			pause = max(pause, min(took*time.Duration(share), maxYield))
		}
		for pause > 0 { // in pieces, so that what is more urgent need not wait
			part := min(pause, 100*time.Millisecond)
			if !p.sleep(part) {
				return ErrClosed
			}
			if err := over(); err != nil {
				return err
			}
			pause -= part
		}
		last = u.now()
		return over()
	}
}

// sleep waits for d; false when the pool is closed meanwhile.
func (p *Pool) sleep(d time.Duration) bool {
	if p.upkeep.nap != nil {
		p.upkeep.nap(d)
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.quit:
		return false
	case <-timer.C:
		return true
	}
}

const (
	maxYield      = time.Second
	resilverShare = 1 // a resilver takes half of the time while users are busy, a scrub a quarter
	scrubShare    = 3
)

// save makes a checkpoint soon, so that what is known of devices and of the scrub is on stable storage.
func (p *Pool) save() {
	p.relabelDue.Store(true)
	p.wake()
}

// maxWindow bounds the memory of a liveMap.
const maxWindow = 16 << 20

// window returns the end of the segments from lo on whose blocks are in memory at a time.
func (p *Pool) window(lo uint32) uint32 {
	n := uint64(maxWindow) * 8 >> (p.seg.shift - block.Shift)
	return uint32(min(uint64(lo)+max(n, 1), uint64(p.seg.count())))
}

// closeOut closes the disks of devices that are out of use, so that somebody may open them again.
func (p *Pool) closeOut() {
	u := &p.upkeep
	u.change.Lock()
	defer u.change.Unlock()
	for _, m := range p.members() {
		if m.dev.State() == raid.Out && !m.busy() {
			p.letGo(m.dev.Disk())
		}
	}
}

// letGo closes a disk that the pool needs no more. It does not wait long. upkeep.change is held.
func (p *Pool) letGo(d disk.Device) {
	for i, x := range p.devs {
		if x == d {
			p.devs = append(p.devs[:i:i], p.devs[i+1:]...)
			closed := make(chan struct{})
			go func() {
				_ = d.Close() // nobody is interested in what it says
				close(closed)
			}()
			timer := time.NewTimer(p.opt.Deadline)
			defer timer.Stop()
			select {
			case <-closed:
			case <-timer.C:
			}
			return
		}
	}
}

// start starts what goes on in the background.
func (p *Pool) start() {
	if p.opt.Manual {
		close(p.stopped)
		close(p.upkeep.stopped)
		return
	}
	p.running.Store(true)
	go p.background()
	go p.keepTold()
	go p.keepUp()
}
