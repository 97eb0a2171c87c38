package pool

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// Activity is what a pool does in the background for its devices.
type Activity struct{ Scrub, Resilver Progress }

// Values of Progress.State.
const (
	ActivityNone    = ""        // there was none
	ActivityRunning = "RUNNING" // of a scrub: it waits while devices are resilvered
	ActivityPaused  = "PAUSED"
	ActivityWaiting = "WAITING" // it could not be completed and is tried again, later or when a device comes or goes
	ActivityStopped = "STOPPED"
	ActivityDone    = "FINISHED"
)

// Progress of a scrub or of a resilver. What is to be done is estimated when it begins.
type Progress struct {
	State       string
	Done, Total int64         // bytes of what is stored
	Repaired    int64         // blocks on devices that were wrong and were made right
	Errors      int64         // blocks and pages that nothing could repair; see Damage
	Rate        int64         // bytes per second, while it runs
	Left        time.Duration // while it runs
	Ended       time.Time     // the last one that ended
}

// task is the progress of a scrub or resilver.
type task struct {
	state       string
	done, total int64
	repaired    int64
	errors      int64
	ended       time.Time

	since     time.Time // when it began or went on in this process
	sinceDone int64
}

// goOn notes that a task runs from now on.
func (t *task) goOn(now time.Time) { t.state, t.since, t.sinceDone = ActivityRunning, now, t.done }

// progress returns t as others see it.
func (t *task) progress(now time.Time) Progress {
	x := Progress{State: t.state, Done: min(t.done, t.total), Total: t.total, Repaired: t.repaired, Errors: t.errors, Ended: t.ended}
	if spent := now.Sub(t.since); t.state == ActivityRunning && spent > 0 {
		x.Rate = int64(float64(t.done-t.sinceDone) / spent.Seconds())
		if x.Rate > 0 {
			x.Left = time.Duration(float64(x.Total-x.Done) / float64(x.Rate) * float64(time.Second))
		}
	}
	return x
}

// Activity returns what the pool does for its devices, and how far it is.
func (p *Pool) Activity() Activity {
	u := &p.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.now()
	return Activity{Scrub: u.scrub.progress(now), Resilver: u.resilver.progress(now)}
}

// DeviceState is the state of a device of a pool.
type DeviceState string

const (
	DeviceOnline      DeviceState = "ONLINE"
	DeviceUnavail     DeviceState = "UNAVAIL"     // it was never found
	DeviceFaulted     DeviceState = "FAULTED"     // it failed, did not answer in time or went away; Cause says which
	DeviceResilvering DeviceState = "RESILVERING" // it is in use, and lacks data
	DeviceReplacing   DeviceState = "REPLACING"   // it is in use, and another device takes its place
	DeviceLeaving     DeviceState = "LEAVING"     // it has been replaced; its labels are about to be wiped
)

func (s DeviceState) String() string { return string(s) }

// DeviceInfo describes a device of the pool.
type DeviceInfo struct {
	GUID      block.GUID
	Name      string // "" for a device that was never found
	Group     int    // number of the raid group, from 0
	Column    int    // place in the group, from 0
	Kind      raid.Kind
	Cache     bool
	Replacing bool // takes the place of the other device of its column
	State     DeviceState
	Cause     error // why it is not in use
	Size      int64 // bytes that the pool reckons with; 0 for a device that was never found
	Units     int   // pieces of the device, one for each segment of its group
	Stale     int   // of them, those that missed writes

	ToResilver int64 // bytes that the device lacks, about

	ReadErrors, WriteErrors, ChecksumErrors uint64
}

// Devices returns what the pool consists of, in the order of its labels, and then the devices that leave it.
func (p *Pool) Devices() []DeviceInfo {
	l := p.labels.now.Load()
	w := p.seg.where.Load()
	type place struct{ group, column int }
	replaced := map[place]bool{}
	for _, m := range l.Members {
		if m.Replacing {
			replaced[place{m.Group, m.Column}] = true
		}
	}
	var all []DeviceInfo
	for _, m := range p.members() {
		i := l.Index(m.guid)
		if i < 0 || m.group >= len(w.groups) {
			continue
		}
		g, x := w.groups[m.group], l.Members[i]
		d := DeviceInfo{
			GUID: m.guid, Group: m.group, Column: x.Column, Kind: g.Kind(), Cache: g.cache, Replacing: x.Replacing, State: DeviceOnline,
			Cause: m.dev.Cause(), Units: int(l.GroupSegments(m.group)), Stale: m.dev.StaleCount(), Size: m.size.Load(),
		}
		if disk := m.dev.Disk(); disk != nil {
			d.Name = disk.Name()
		}
		switch s := m.dev.State(); {
		case s == raid.Missing:
			d.State = DeviceUnavail
		case s == raid.Out:
			d.State = DeviceFaulted
		case d.Stale > 0 || d.Replacing:
			d.State = DeviceResilvering
		case replaced[place{x.Group, x.Column}]:
			d.State = DeviceReplacing
		}
		if d.Stale > 0 {
			d.ToResilver = p.toResilver(m) / int64(g.row)
		}
		d.ReadErrors, d.WriteErrors, d.ChecksumErrors = m.dev.Errors()
		all = append(all, d)
	}
	for _, x := range l.Members {
		if x.Left && p.memberOf(x.GUID) == nil {
			g := w.groups[x.Group]
			all = append(all, DeviceInfo{GUID: x.GUID, Group: x.Group, Column: x.Column, Kind: g.Kind(), Cache: g.cache, State: DeviceLeaving})
		}
	}
	return all
}

// toResilver returns the live bytes in the segments that a device lacks something of.
func (p *Pool) toResilver(m *member) (n int64) {
	const step = 4096 // segments looked at in one critical section
	w := p.seg.where.Load()
	stale := m.dev.StaleUnits()
	for u := stale.Next(0); u >= 0; {
		p.idx.mu.RLock()
		for i := 0; u >= 0 && i < step; i++ {
			if seg, ok := w.segment(m.group, u); ok {
				n += int64(p.seg.pageLive[seg]) + int64(p.seg.deltaLive[seg])
			}
			u = stale.Next(u + 1)
		}
		p.idx.mu.RUnlock()
	}
	return n
}
