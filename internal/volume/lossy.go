package volume

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Started notes that a process begins to serve the replica, on a machine whose present boot has that id. If the state has
// changed it is to be stable before the replica registers. A complete replica whose machine went down without a clean stop is
// suspect from then on: it may lack operations that it acknowledged (replication rule 8). An incomplete one acknowledged
// nothing that counted since its CompleteAt, which is stable.
func (s *State) Started(bootID string) (changed bool) {
	was := *s
	if s.BootID != "" && s.BootID != bootID {
		s.Failed()
	}
	s.BootID, s.Clean = bootID, false
	return s.BootID != was.BootID || s.Clean != was.Clean || s.Suspect != was.Suspect
}

// Failed notes that what was not flushed may be gone: the machine went down, or the pool failed. After a clean stop everything
// was flushed. If the state has changed it is to be stable before the replica is served again.
func (s *State) Failed() (changed bool) {
	was := s.Suspect
	s.Suspect = was || s.Complete && !s.Clean
	return s.Suspect != was
}

// Stopped notes that the process stops serving in good order, with everything stable. What was lost before stays so.
func (s *State) Stopped() { s.Clean = true }

// unknown is what past.completed is until this target serves, and again when another one has opened the volume.
const unknown = math.MaxUint64

// lossless reports whether auth is known to hold everything that was ever completed, or what of it an earlier lossy epoch
// left. This target knows, if nobody else has opened the volume since it did. Else it is so if those who promised and cannot
// have lost anything are enough for a claim: one of them holds it, and auth is as far (replication rules 12 and 42). If the
// record is one that was restored, nobody knows who is enough but all, and a higher key does not mean more: two targets may have
// gone on from one point.
func (c *Core) lossless(auth *peer) bool {
	if c.past.completed == unknown {
		sure := func(p *peer) bool { return p.state == promised && !p.report.State.Suspect }
		if c.givesUp(auth) {
			return false
		}
		if c.rec.restored {
			return c.everyMember(func(p *peer) bool { return sure(p) && auth.report.has(p.report) })
		}
		return c.lacking(sure) == ""
	}
	told := block.Version{Epoch: c.past.history.Epoch(), N: c.past.completed}
	return CommonPoint(c.past.history, told, auth.report.State.History, auth.report.Last).N >= told.N
}

// givesUp reports whether a replica that contradicts the record, as somebody has accepted, has what auth lacks.
func (c *Core) givesUp(auth *peer) bool {
	return slices.ContainsFunc(c.contradictions(), func(s seen) bool {
		p := c.find(s.guid)
		return p != nil && p.state != gone && c.accepts(s.Noted) && !auth.report.has(p.report)
	})
}

// awaitsOthers reports whether an epoch that may lack what was completed is not opened yet, since somebody is away that may
// have it, or may tell that it is here: the members, if the record names some then these, and the record as long as it
// cannot be read.
func (c *Core) awaitsOthers() bool {
	here := func(p *peer) bool { return p.state == promised }
	away, whom := !c.everyMember(here), "the others, which may have it"
	if set := c.believed(); c.bare {
		away = c.countOf(c.committed, func(p *peer) bool { return here(p) && !p.report.State.Suspect }) > 0
		whom = "the volume's record, which may name one that did not"
	} else if len(set) > 0 {
		away = !c.haveAll(set, here)
	}
	if !away || c.now-c.quorumAt >= c.settings.LossyGrace {
		return false
	}
	why := "replicas lost power, or their pools failed, and may lack what was completed and not flushed"
	if c.rec.restored {
		why = "the volume's record went back, and who has everything is not known"
	}
	c.holding = fmt.Sprintf("%s: waiting up to %v for %s", why, c.settings.LossyGrace, whom)
	return true
}

// untold returns the newest lossy epoch if the initiator is not known to have been told of it, else the zero Promise. Until it has
// got the answer that a flush failed all flushes fail: what it had written before that epoch, and not flushed, may be gone, and
// it would take a flush that succeeds for the proof that it is not (replication rule 43). It may be told twice, if this target
// ends before the members know; never is it taken for told because an answer was only sent.
//
// A FUA write is no such proof, of nothing but itself. Who wrote is not recorded: there is one initiator at a time, and after another
// one has come, and was told, nobody has to believe what the one before wrote last.
func (c *Core) untold() Promise {
	lost := c.history.lossy().by()
	if lost != c.past.told && slices.ContainsFunc(c.peers, func(p *peer) bool { return p.report.State.Told == lost }) {
		c.past.told = lost
	}
	if lost == c.past.told {
		return Promise{}
	}
	return lost
}

// failFlushes ends the flushes that wait if the initiator has to be told of a lossy epoch.
func (c *Core) failFlushes() {
	lost := c.untold()
	if lost == (Promise{}) {
		return
	}
	for _, f := range c.flushes {
		c.out.FlushHeld = append(c.out.FlushHeld, FlushEnd{Tag: f.tag, Err: block.ErrLost, Lost: lost})
	}
	c.flushes = nil
}

// Told tells that the initiator has got the answer that a flush failed, which said lost.
func (c *Core) Told(now time.Duration, lost Promise) {
	c.now = now
	if lost.Epoch <= c.past.told.Epoch {
		return
	}
	c.past.told = lost
	if c.phase == open {
		c.spread() // which has the members note it
	}
}

// trust tells a suspect replica, which counts now, that it holds everything again.
func (c *Core) trust(p *peer) {
	if p.report.State.Suspect {
		p.report.State.Suspect = false
		c.send(p, Counted{})
	}
}
