package volume

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/cstor-go/cstor/internal/block"
)

// TestTranscripts runs the files of testdata. Each is the life of one volume: commands, and what they led to.
//
//	replicas a b c [stages]   make empty replicas; these know Stage, or with paces Pace
//	target founding=3 factor=3 start a target, when all leases of the one before have run out unless it is soon;
//	                          the one before is dead, its connections are not yet noticed
//	connect a b               these dial the target that is there
//	run [a b] [until=Text]    deliver and do everything, only to and from these if any are given, until a line has Text
//	quiet                     the same as run without printing it
//	cut a                     a's connection is lost with all that is under way
//	crash a                   a's process starts again with what its disk has
//	powerloss a to=1.2        the same, and the disk has lost what came after that
//	poolfails a to=1.2        the same, in the same boot of its machine
//	reboot a                  the same in good order
//	kill                      the target is gone; nothing it sent is lost
//	aside                     the target goes on, but all its connections are lost
//	leave [frozen]            the target goes on by itself with the connections that it has, or is frozen with them
//	other                     the commands that follow are for the target that was left, or again for the newer one
//	back                      the target that is there goes aside, the one that is aside comes back
//	above epoch=9             the target hears of that epoch, not from the replicas
//	ack session=1 n=2         the target reads an acknowledgement of that session, of which it does not know that it is over
//	cutoff                    the target hears nothing of Kubernetes any more; cutoff no: again
//	expire                    all leases run out, before anybody does anything
//	stop                      the target ends in good order
//	pings                     tell of pings from now on
//	nonces                    tell the nonces of histories from now on
//	epochs a b n=300          these replicas were complete through that many epochs
//	progress c chunks=1       c tells how far its pull is, or for what it is waiting=; hang, resume, damage, apart, space: see there
//	pace                      what the target told rebuilds how fast they may go
//	write b content [fua]     propose; discard b; read b; flush; told: the initiator has got the answer that the last one failed
//	want factor=2 remove=a    tick 1s; step a <message>; member a; members; status
//	api down                  how requests for the volume's record fare: see setAPI; record
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		e := &stage{members: map[string]*actor{}, now: time.Second}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			e.out.Reset()
			e.command(t, d)
			if e.out.Len() == 0 {
				return "ok\n"
			}
			return e.out.String()
		})
	})
}

// stage is a target, replicas, and the streams between them.
type stage struct {
	out     strings.Builder
	core    *Core
	aside   *Core
	frozen  bool // aside does nothing
	now     time.Duration
	members map[string]*actor
	api     api
	killed  *Core
	lost    Promise // what the last flush that failed said
	session SessionID
	nonce   uint64
	mute    bool
	pings   bool
	nonces  bool
	brief   bool
}

// actor is a replica and its connection.
type actor struct {
	name    string
	m       *Member
	core    *Core // that it is connected to; nil: it is dead
	blocks  map[uint64]content
	session SessionID
	boot    int // counts those of its machine
	in, out []func()
	pull    *Pull
	wakeAt  time.Duration // the member is to be called then; zero: never
	hung    bool
	after   []func() // what it will do when it is not hung any more
	damaged bool
	apart   bool // it differs in too much to catch up at once
}

type content struct {
	version block.Version
	data    string
}

func (e *stage) command(t *testing.T, d *datadriven.TestData) {
	var names []string
	opt := map[string]string{}
	for _, a := range d.CmdArgs {
		if len(a.Vals) > 0 {
			opt[a.Key] = strings.Join(a.Vals, ",")
		} else {
			names = append(names, a.Key)
		}
	}
	num := func(key string) int { n, _ := strconv.Atoi(opt[key]); return n }
	switch d.Cmd {
	case "replicas":
		stages := slices.Contains(names, "stages")
		for _, n := range names {
			if n == "stages" || n == "paces" {
				continue
			}
			a := &actor{name: n, blocks: map[uint64]content{}}
			a.start(e, Report{GUID: e.guid(n), Name: n, PullAddr: n, Stages: stages, Paces: slices.Contains(names, "paces")})
			e.members[n] = a
		}
	case "target":
		if !slices.Contains(names, "soon") {
			e.expire()
		}
		e.nonce++
		e.core = NewCore(e.nonce, 1<<20, Settings{}, Desired{Founding: num("founding"), Factor: num("factor"), Witness: slices.Contains(names, "witness")})
		e.ready()
	case "stop":
		e.core.Stop(e.now)
		e.ready()
	case "expire":
		e.expire()
	case "pings":
		e.pings = true
	case "nonces":
		e.nonces = true
	case "kill":
		for _, a := range e.members {
			if a.core == e.core {
				a.core = nil
			}
		}
		e.core, e.killed = nil, e.core
	case "leave":
		e.core, e.aside, e.frozen = nil, e.core, slices.Contains(names, "frozen")
	case "other":
		e.core, e.aside, e.frozen = e.aside, e.core, false
	case "connect":
		for _, n := range names {
			a := e.members[n]
			e.session++
			a.session, a.core, a.in, a.out, a.pull = e.session, e.core, nil, nil, nil
			a.m.Connect(a.session)
			e.core.Connect(e.now, a.session, Register{Report: a.m.Report()})
			e.ready()
		}
	case "cut":
		for _, n := range names {
			a := e.members[n]
			a.in, a.out, a.pull = nil, nil, nil
			a.m.Disconnect(a.session)
			e.at(a.core, func() { e.core.Disconnect(e.now, a.session) })
		}
	case "crash":
		for _, n := range names {
			a := e.members[n]
			a.start(e, a.m.Report())
		}
	case "powerloss", "poolfails":
		for _, n := range names {
			a := e.members[n]
			r := a.m.Report()
			r.Last = parseVersion(opt["to"])
			maps.DeleteFunc(a.blocks, func(_ uint64, c content) bool { return r.Last.Less(c.version) })
			if d.Cmd == "powerloss" {
				a.boot++
			} else {
				r.State.Failed()
			}
			a.start(e, r)
		}
	case "reboot":
		for _, n := range names {
			a := e.members[n]
			r := a.m.Report()
			r.State.Stopped()
			a.boot++
			a.start(e, r)
		}
	case "aside", "back":
		for _, a := range e.members {
			a.in, a.out, a.pull = nil, nil, nil
			a.m.Disconnect(a.session)
			e.core.Disconnect(e.now, a.session)
			a.session = 0
		}
		e.ready()
		e.core, e.aside, e.frozen = e.aside, e.core, true
	case "epochs":
		for _, n := range names {
			r := e.members[n].m.Report()
			for len(r.State.History) < num("n") {
				r.State.History = append(r.State.History, EpochStart{Epoch: r.State.History.Epoch() + 1, First: r.Last.N + 1})
				r.Last = block.Version{Epoch: r.State.History.Epoch(), N: r.Last.N + 1}
			}
			r.State.Promised.Epoch = r.Last.Epoch
			e.members[n].m = NewMember(e.now, r, LeaseTime)
		}
	case "run", "quiet":
		e.mute = d.Cmd == "quiet"
		e.run(names, opt["until"])
		e.mute = false
	case "write", "discard":
		n, _ := strconv.ParseUint(names[0], 10, 64)
		op := &Op{Kind: OpWrite, Block: n, Count: 1, FUA: slices.Contains(names, "fua"), Tag: names[len(names)-1]}
		if d.Cmd == "write" {
			op.Tag = names[1]
		} else {
			op.Kind, op.Tag = OpDiscard, ""
		}
		e.core.Propose(e.now, op)
		e.ready()
	case "read":
		n, _ := strconv.ParseUint(names[0], 10, 64)
		e.core.Read(e.now, &ReadOp{Block: n, Count: 1, Tag: new(string)})
		e.ready()
	case "flush":
		e.core.Flush(e.now, "flush")
		e.ready()
	case "told":
		e.core.Told(e.now, e.lost)
		e.ready()
	case "tick":
		dur, err := time.ParseDuration(names[0])
		if err != nil {
			t.Fatal(err)
		}
		for end := e.now + dur; e.now < end; {
			e.now += min(200*time.Millisecond, end-e.now)
			e.wake()
			if !e.frozen {
				e.at(e.aside, func() { e.core.Tick(e.now) })
			}
			e.at(e.core, func() { e.core.Tick(e.now) })
			if slices.Contains(names, "alive") { // what is sent is delivered; only what happens to sessions and requests is told
				e.brief = true
				e.run(nil, "")
				e.brief = false
			}
		}
	case "want":
		w := e.core.desired
		w.Factor = num("factor")
		w.Witness = slices.Contains(names, "witness")
		w.AcceptRecord = nil
		for _, s := range strings.FieldsFunc(opt["accept"], func(r rune) bool { return r == ',' }) {
			n, err := ParseNoted(s)
			if err != nil {
				t.Fatal(err)
			}
			w.AcceptRecord = append(w.AcceptRecord, n)
		}
		w.RebuildLimit = int64(num("limit")) << 20
		w.Remove = nil
		if opt["remove"] != "" {
			w.Remove = []block.GUID{e.guid(opt["remove"])}
		}
		e.core.Want(e.now, w)
		e.ready()
	case "above":
		e.core.Above(e.now, uint64(num("epoch")))
		e.ready()
	case "ack":
		e.core.Ack(e.now, SessionID(num("session")), uint64(num("n")), 0)
		e.ready()
	case "cutoff":
		e.core.CutOff(e.now, !slices.Contains(names, "no"))
	case "hang": // what a replica has applied does not become stable any more, until resume
		for _, n := range names {
			e.members[n].hung = true
		}
	case "resume":
		for _, n := range names {
			a := e.members[n]
			a.hung = false
			for _, f := range a.after {
				f()
			}
			a.after = nil
		}
	case "apart": // the replica differs from all others in too much to catch up at once
		for _, n := range names {
			e.members[n].apart = true
		}
	case "damage": // nobody can rebuild from the replica any more
		for _, n := range names {
			e.members[n].damaged = true
		}
	case "progress": // of a pull
		a := e.members[names[0]]
		e.core.Step(e.now, a.session, Progress{Attempt: a.pull.Attempt, ChunksDone: uint64(num("chunks")), WaitingFor: opt["waiting"]})
		e.ready()
	case "space":
		e.core.Step(e.now, e.members[names[0]].session, Space{Full: slices.Contains(names, "full")})
		e.ready()
	case "restart":
		e.core = e.core.Successor(e.nonce + 100)
		e.ready()
	case "step": // a message straight to a replica
		a := e.members[names[0]]
		var m Message
		v := func(key string) block.Version { return parseVersion(opt[key]) }
		switch names[1] {
		case "claim":
			m = Claim{Promise{Epoch: uint64(num("epoch")), Nonce: uint64(num("nonce"))}}
		case "join":
			m = Join{Attempt: uint64(num("attempt")), Source: Peer{Name: opt["source"]}, History: parseHistory(opt["history"]), Last: v("last")}
		case "stream":
			m = Stream{Attempt: uint64(num("attempt")), From: v("from")}
		case "stage":
			m = Stage{Attempt: uint64(num("attempt")), Source: Peer{Name: opt["source"]}, History: parseHistory(opt["history"]), From: v("from")}
		case "pace":
			m = Pace{Attempt: uint64(num("attempt")), BytesPerSec: uint64(num("rate")) << 20, For: "somebody"}
		case "promote":
			m = Promote{Attempt: uint64(num("attempt")), History: parseHistory(opt["history"])}
		default:
			t.Fatalf("%s: unknown message", d.Pos)
		}
		e.print(a.m.Step(e.now, a.session, m))
	case "pace":
		for _, p := range e.core.peers {
			switch {
			case p.state != pulling:
			case p.paced == (Pace{}):
				fmt.Fprintf(&e.out, "%c was not told\n", p.guid[0])
			case p.paced.BytesPerSec == 0:
				fmt.Fprintf(&e.out, "%c: as fast as it can\n", p.guid[0])
			default:
				fmt.Fprintf(&e.out, "%c: %s\n", p.guid[0], text(p.paced))
			}
		}
	case "rebuilt":
		e.print(e.members[names[0]].m.Rebuilt(uint64(num("attempt"))))
	case "staged":
		e.print(e.members[names[0]].m.Staged(uint64(num("attempt")), parseVersion(opt["scan"])))
	case "attach": // a session of a replica with a target that is not on the stage
		e.session++
		e.members[names[0]].session = e.session
		e.members[names[0]].m.Connect(e.session)
	case "check":
		session := e.members[names[0]].session
		if opt["session"] == "old" {
			session--
		}
		fmt.Fprintln(&e.out, e.members[names[0]].m.Check(session, parseVersion(opt["first"]), 1))
	case "mayserve":
		p := Promise{Epoch: uint64(num("epoch")), Nonce: uint64(num("nonce"))}
		fmt.Fprintln(&e.out, e.members[names[0]].m.MayServe(p, parseVersion(opt["from"])))
	case "member", "members":
		if len(names) == 0 {
			names = slices.Sorted(maps.Keys(e.members))
		}
		for _, n := range names {
			e.describe(e.members[n])
		}
	case "status":
		e.status()
	case "api":
		e.setAPI(names[0], uint64(num("version")))
	case "record":
		e.printf("record: %s", recordText(e.api.is()))
	default:
		t.Fatalf("%s: unknown command", d.Pos)
	}
}

// start is what the process of a replica begins with.
func (a *actor) start(e *stage, r Report) {
	r.State.Started(strconv.Itoa(a.boot + 1))
	a.m = NewMember(e.now, r, LeaseTime)
	a.in, a.out, a.pull, a.session = nil, nil, nil, 0
}

func (e *stage) guid(name string) block.GUID { return block.GUID{name[0]} }

func (e *stage) printf(format string, args ...any) {
	if e.brief && !strings.HasPrefix(format, "done") && !strings.HasPrefix(format, "flush") && !strings.HasPrefix(format, "target closes") {
		return
	}
	if !e.mute {
		fmt.Fprintf(&e.out, format+"\n", args...)
	}
}

func (e *stage) print(rd MemberReady) {
	if rd.State != nil {
		e.printf("persist complete=%v completeAt=%v base=%v applied=%v", rd.State.Complete, rd.State.CompleteAt, rd.State.Base, rd.Applied)
	}
	for _, m := range rd.Messages {
		e.printf("send %s", text(m))
	}
	if rd.Pull != nil {
		ambiguous := ""
		if rd.Pull.Ambiguous {
			ambiguous = " ambiguous"
		}
		e.printf("pull from %v base %v%s", rd.Pull.From, rd.Pull.Base, ambiguous)
	}
	if rd.Pace != nil {
		e.printf("take %s", text(*rd.Pace))
	}
	if rd.Close != "" {
		e.printf("close: %s", rd.Close)
	}
}
