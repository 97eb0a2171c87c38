package volume

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// A complete replica whose missing operations are not in the ring any more, or that has some which the volume has not, need
// not become incomplete if it differs in little (replication rule 24, history H21): it asks a member in sync for all that
// differs, as of one moment, and applies that at once, together with the history, as one unit of its log. Before that it is
// what it was, afterwards it is what the source was at that moment, and is sent what came since as ever. Nothing is streamed
// to it meanwhile; the ring keeps what comes after Stage.From.

// mostStages is how often in a row a replica may fail to catch up so before it is rebuilt, if it may become incomplete.
const mostStages = 2

// mostStaged is for how many times Settings.Deadline it may take, after it waited for other replicas of its pool.
const mostStaged = 10

// mayStage reports whether p is to catch up with source that way.
func (c *Core) mayStage(p, source *peer) bool {
	return p.report.Stages && source.report.Stages && p.report.State.Complete && !p.tooMuch && (p.unstaged < mostStages || !c.mayJoin(p))
}

// stage lets p catch up with what source has.
func (c *Core) stage(p, source *peer) {
	c.attempt++
	c.counters.Stages++
	from := block.Version{Epoch: c.promise.Epoch, N: source.acked}
	c.noteDivergent(p, from)
	p.attempt, p.source, p.progress = c.attempt, source, Progress{}
	p.acked, p.pulled = from.N, c.now
	c.become(p, staging)
	c.send(p, Stage{Attempt: p.attempt, Source: source.peer(), History: c.history, From: from})
}

// staged goes on with a replica that durably has what its source had. The ring has all that came after.
func (c *Core) staged(p *peer, m Staged) {
	if p.state != staging || m.Attempt != p.attempt {
		return
	}
	p.report.Last, p.report.State.History = m.Last, c.history
	p.source = nil
	if !c.resendable(p) {
		c.close(p, fmt.Sprintf("replica caught up with %v, which cannot be", m.Last))
		return
	}
	c.counters.Staged++
	c.resend(p)
}

// stageFailed goes on with a replica that is what it was.
func (c *Core) stageFailed(p *peer, m StageFailed) {
	if p.state != staging || m.Attempt != p.attempt {
		return
	}
	c.become(p, promised)
	if m.TooMuch {
		p.tooMuch = true
		return
	}
	p.error = fmt.Sprintf("catching up with %s: %s", c.name(p.source.guid), m.Reason)
	p.avoid = p.source
	p.unstaged++
	c.delay(p)
}

// checkStaging ends what takes too long.
func (c *Core) checkStaging(p *peer) {
	if p.state == staging && c.now-p.pulled > mostStaged*c.settings.Deadline {
		c.giveUpJoin(p, "it takes too long")
	}
}

// beginStage lets the shell fetch what the replica lacks. Nothing changes by that.
func (m *Member) beginStage(msg Stage) MemberReady {
	s := &m.report.State
	if !s.Complete || msg.From.Epoch != s.Promised.Epoch || msg.History.Epoch() != s.Promised.Epoch {
		return MemberReady{Close: fmt.Sprintf("stage from %v, promised epoch %d, complete %v", msg.From, s.Promised.Epoch, s.Complete)}
	}
	rd := MemberReady{StopPull: m.phase != joinNone}
	m.endJoin()
	m.phase, m.attempt, m.toStage = joinStage, msg.Attempt, msg
	if msg.History.contradicts(s.History) {
		failed := m.StageFailed(msg.Attempt, "an epoch was opened by two targets, and versions do not tell what differs", true)
		rd.Messages = failed.Messages
		return rd
	}
	rd.Pull = &Pull{
		Attempt: msg.Attempt,
		Source:  msg.Source,
		Promise: s.Promised,
		From:    msg.From,
		Base:    CommonPoint(s.History, m.report.Last, msg.History, msg.From),
		Stage:   true,
	}
	return rd
}

// Staged tells that everything in which the replica differs from the source of attempt, as of when that had applied scan, is
// here. The State goes into the log in one unit with it, all or nothing. Without a State it is to be forgotten: the
// replica is not any more what it was when that was asked for.
func (m *Member) Staged(attempt uint64, scan block.Version) MemberReady {
	s := &m.report.State
	if m.phase != joinStage || attempt != m.attempt {
		return MemberReady{}
	}
	if scan.Epoch != s.Promised.Epoch || scan.Less(m.toStage.From) || scan.Less(m.report.Last) {
		return m.StageFailed(attempt, fmt.Sprintf("the source answered for %v, which is not what was asked for", scan), false)
	}
	s.History = m.toStage.History
	m.report.Last = scan
	m.endJoin()
	var rd MemberReady
	m.persist(&rd)
	rd.Messages = []Message{Staged{Attempt: attempt, Last: scan}}
	return rd
}

// StageFailed tells that what the replica lacks cannot be had, or is too much to be applied at once.
func (m *Member) StageFailed(attempt uint64, reason string, tooMuch bool) MemberReady {
	if m.phase != joinStage || attempt != m.attempt {
		return MemberReady{}
	}
	m.endJoin()
	return MemberReady{StopPull: true, Messages: []Message{StageFailed{Attempt: attempt, Reason: reason, TooMuch: tooMuch}}}
}
