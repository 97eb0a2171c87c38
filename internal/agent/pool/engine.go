package pool

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Group is a raid group to be made of devices, which are named by their paths on this node.
type Group struct {
	Kind    string // as in the pool's object: stripe, mirror, raidz, raidz2
	Cache   bool   // it takes index and log, not data
	Devices []string
}

// States of a device. Others count as trouble.
const (
	stateOnline      = "ONLINE"
	stateUnavailable = "UNAVAIL"     // it was not found
	stateFaulted     = "FAULTED"     // it failed, or did not answer in time
	stateResilvering = "RESILVERING" // it is in use, and lacks data
	stateReplacing   = "REPLACING"   // its data is being copied to another one
	stateLeaving     = "LEAVING"     // it was replaced, and may not be given back yet
)

// DeviceInfo is a device of an open pool.
type DeviceInfo struct {
	GUID          block.GUID
	Name          string // its path when it was opened
	Group, Column int
	Kind          string
	Cache         bool
	State         string
	Cause         error // why it is not ONLINE, if the engine knows
	Size          int64 // bytes that the pool uses

	ReadErrors, WriteErrors, ChecksumErrors uint64
	ToResilver                              int64 // bytes
}

// Activity is what a pool does in the background.
type Activity struct{ Scrub, Resilver Progress }

// Progress of a scrub or of a resilver, in bytes.
type Progress struct {
	State                         string
	Done, Total, Repaired, Errors int64
	Rate                          int64 // bytes per second
	Left                          time.Duration
	Ended                         time.Time // the last one
}
