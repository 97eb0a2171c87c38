package volume

import (
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// BenchmarkCore is the steady state of a volume with three members and 32 writes in flight: per operation one
// Propose, three acknowledgements, its completion and release.
func BenchmarkCore(b *testing.B) {
	const depth, members = 32, 3
	c := NewCore(1, 1<<30, Settings{}, Desired{Founding: members, Factor: members})
	ms := make([]*Member, members)
	for i := range ms {
		ms[i] = NewMember(0, Report{GUID: block.GUID{byte(i + 1)}}, LeaseTime)
		ms[i].Connect(SessionID(i + 1))
		c.Connect(1, SessionID(i+1), Register{ms[i].Report()})
	}
	for r := c.Ready(); r != nil; r = c.Ready() {
		sends, rec := append([]Send(nil), r.Sends...), r.Record
		for _, s := range sends {
			m := ms[s.Session-1]
			switch {
			case s.Message != nil:
				for _, reply := range m.Step(0, s.Session, s.Message).Messages {
					c.Step(1, s.Session, reply)
				}
			case s.Ops != nil:
				m.Open(s.Session, s.Ops[0])
				c.Ack(1, s.Session, 1, 1)
			}
		}
		if rec != nil {
			is := Record{}
			if rec.Want != nil {
				is = *rec.Want
			}
			c.RecordIs(1, rec.ID, is, true)
		}
	}
	if !c.Status().Serving {
		b.Fatal(c.Status().Holding)
	}
	free := make([]*Op, depth)
	for i := range free {
		free[i] = &Op{Kind: OpWrite, Block: uint64(i), Count: 1}
	}
	now, acked := time.Duration(1), uint64(1)
	b.ReportAllocs()
	for n := 0; n < b.N; {
		now++
		batch := min(depth/2, len(free), b.N-n)
		for range batch {
			op := free[len(free)-1]
			free = free[:len(free)-1]
			c.Propose(now, op)
			n++
		}
		if r := c.Ready(); r != nil && len(r.Sends) < members {
			b.Fatal("not sent")
		}
		for range batch {
			acked++
			for s := range SessionID(members) {
				c.Ack(now, s+1, acked, 1)
			}
			if r := c.Ready(); r != nil {
				free = append(free, r.Released...)
			}
		}
	}
}
