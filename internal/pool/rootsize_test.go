package pool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// rootTest fills the root of a pool for which it may not be large.
type rootTest struct {
	*testing.T
	p *Pool
	m *disk.Mem
	n uint64 // versions
	k int    // names
}

var smallRoot = Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, rootBytes: 128 << 10}

func newRootTest(t *testing.T) *rootTest {
	p, m := newMemPool(t, 64<<20, smallRoot)
	return &rootTest{T: t, p: p, m: m}
}

func (c *rootTest) name() string {
	c.k++
	return fmt.Sprintf("%0*d", MaxName, c.k)
}

func (c *rootTest) apply(name string, o Op) error {
	c.n++
	o.Version = ver(c.n)
	return c.p.Replica(name).Apply([]Op{o})
}

// till repeats something until it is refused, which changes nothing, and returns how often it was done.
func (c *rootTest) till(what string, do func() error) (n int) {
	c.Helper()
	for ; ; n++ {
		before, log := c.content(), c.p.appended.Load()
		err := do()
		if err == nil && n < 4096 {
			continue
		}
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "delete") {
			c.Fatalf("%s number %d: %v", what, n, err)
		}
		if now := c.content(); now != before || c.p.appended.Load() != log {
			c.Fatalf("%s was refused, and\n%s\nbecame\n%s", what, before, now)
		}
		return n
	}
}

// content returns what the root says of replicas.
func (c *rootTest) content() string {
	var all []string
	for _, r := range c.p.Replicas() {
		all = append(all, fmt.Sprint(r.name, r.Size(), r.Applied(), r.Snapshots(), block.Sum(r.State()), len(r.State())))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// crash opens the pool anew, which makes a checkpoint when it has replayed the log, or in the middle of that.
func (c *rootTest) crash() {
	c.Helper()
	before := c.content()
	c.m = c.m.Kill()
	q, err := Open([]disk.Device{c.m}, smallRoot)
	must(c, err)
	c.Cleanup(func() { q.Close() })
	c.p = q
	must(c, q.cycle())
	must(c, q.Check())
	if now := c.content(); now != before {
		c.Fatalf("%s\nbecame\n%s", before, now)
	}
	q.idx.mu.Lock()
	defer q.idx.mu.Unlock()
	sum := int64(0)
	for _, r := range q.idx.bySlot {
		if r != nil {
			r.weigh()
			sum += r.inRoot
		}
	}
	if sum != q.idx.rootUse.replicas {
		c.Fatalf("%d bytes of the root, counted as %d", sum, q.idx.rootUse.replicas)
	}
}

// TestRootIsFull makes all that a checkpoint's root has to say as large as it may become: what is too much is refused,
// checkpoints are made, also in the middle of a replay, and what makes the root smaller is always done.
func TestRootIsFull(t *testing.T) {
	c := newRootTest(t)
	state := func(name string, n int) error {
		return c.p.Replica(name).SetState(bytes.Repeat([]byte{byte(n)}, n), c.p.Replica(name).Applied())
	}
	snapshots := func(r string) func() error {
		return func() error { return c.apply(r, Op{Kind: OpSnapshot, Name: c.name()}) }
	}
	create := func() error { _, err := c.p.CreateReplica(strings.TrimLeft(c.name(), "0"), 1<<30); return err }
	for _, r := range []string{"a", "b", "replica", "d"} {
		_, err := c.p.CreateReplica(r, 1<<30)
		must(t, err)
	}
	must(t, state("a", 16<<10))
	must(t, c.apply("b", Op{Kind: OpSnapshot, Name: "s"}))
	_, err := c.p.Clone("clone", "b", "s")
	must(t, err)
	if n := c.till("snapshot", snapshots("b")); n < 200 {
		t.Fatalf("%d snapshots", n)
	}
	c.till("replica", create)
	c.till("clone", func() error { _, err := c.p.Clone(c.name(), "b", "s"); return err })
	c.till("larger replica", func() error { return c.apply("a", Op{Kind: OpResize, Size: c.p.Replica("a").Size() + 16<<30}) })
	c.till("snapshots of another pool", func() error {
		r := c.p.Replica("a")
		_, err := r.SetSnapshots(append(r.Snapshots(), Snapshot{Name: c.name(), Version: ver(1)}))
		return err
	})
	c.till("large snapshot of another pool", func() error {
		r := c.p.Replica("a")
		_, err := r.SetSnapshots([]Snapshot{{Name: "s", Version: ver(1), Size: MaxReplicaSize}})
		return err
	})
	must(t, state("d", 4<<10)) // there is always room for a small one, and a share for larger ones
	if n := len("d"); c.till("state", func() error { n += 1 << 10; return state("d", n) }) < 8 {
		t.Fatal("little room for state records")
	}
	c.crash()

	p := c.p
	p.drain.cycle.Lock()
	unlock := sync.OnceFunc(p.drain.cycle.Unlock)
	defer unlock()
	for i := range uint64(2200) { // the replay makes a checkpoint in between
		must(t, c.apply("clone", Op{Kind: OpDiscard, Block: i, Count: 1}))
	}
	must(t, state("a", 1))
	must(t, state("d", 1))
	must(t, p.DestroyReplica("replica"))
	must(t, p.Replica("b").PutState(nil, p.Replica("b").Applied()))
	for _, s := range p.Replica("b").Snapshots() {
		if s.Name != "s" {
			must(t, c.apply("b", Op{Kind: OpDeleteSnapshot, Name: s.Name}))
		}
	}
	snaps, created := c.till("snapshot", snapshots("a")), c.till("replica", create)
	if snaps == 0 || created != 0 {
		t.Fatalf("%d snapshots and %d replicas when some are deleted", snaps, created)
	}
	c.crash() // as if nothing had been drained
	unlock()
	if n := c.till("replica", create); n == 0 {
		t.Fatal("no room for a replica when one is destroyed")
	}
	c.crash()
	for _, r := range c.p.Replicas() {
		if r.name != "b" {
			must(t, c.p.DestroyReplica(r.name))
		}
	}
	must(t, c.apply("b", Op{Kind: OpDeleteSnapshot, Name: "s"}))
	c.crash()
}

// TestRootWithDevices adds devices to a pool whose root has no room for more segments.
func TestRootWithDevices(t *testing.T) {
	c := newRootTest(t)
	_, err := c.p.CreateReplica("v", 1<<20)
	must(t, err)
	c.till("snapshot", func() error { return c.apply("v", Op{Kind: OpSnapshot, Name: c.name()}) })
	n := c.p.opt.rootBytes / shareOfStates / rootSegment * smallRoot.SegmentBytes / 2 // which the share of states has room for
	large := disk.NewMem("large", n+64<<20)
	if err := c.p.AddGroups(Stripe(large)); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	if _, err := Probe(large); !errors.Is(err, ErrBlank) {
		t.Fatal(err)
	}
	before := c.p.Stats().Segments
	c.m.Grow(n + 64<<20)
	if err := c.p.Expand(); !errors.Is(err, ErrTooLarge) || c.p.Stats().Segments != before {
		t.Fatal(c.p.Stats().Segments, before, err)
	}
	must(t, c.apply("v", Op{Kind: OpWrite, Count: 1, Data: fill(1, 1)}))
	c.crash()
	must(t, c.p.Replica("v").Apply([]Op{write(1, 1, c.n+1)}))
	for _, s := range c.p.Replica("v").Snapshots()[:20] {
		must(t, c.p.Replica("v").Apply([]Op{unsnap(s.Name, c.p.Replica("v").Applied().N+1)}))
	}
	more := disk.NewMem("more", 16<<20)
	must(t, c.p.AddGroups(Stripe(more)))
	must(t, c.p.cycle())
	if _, err := Create(Stripe(disk.NewMem("large", 2*n*shareOfStates)), Config{Name: "large"}, smallRoot); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
}

// TestStaleUnitsInRoot writes and reads sets of units, which take no more than is reckoned with.
func TestStaleUnitsInRoot(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, units := range []int{1, 64, 1000, 100_000, label.MaxSegments} {
		for _, oneIn := range []int{1, 2, 10, 1000} {
			want := make(raid.Bitmap, (units+63)/64+1)
			for u := range units {
				if oneIn == 2 && u%2 == 0 || oneIn != 2 && rng.IntN(oneIn) == 0 {
					want[u/64] |= 1 << (u % 64)
				}
			}
			b := appendUnits(nil, want)
			if most := rootDevice - 16 + (units+63)/64*8; len(b) > most {
				t.Errorf("%d bytes for %d units, want at most %d", len(b), units, most)
			}
			r := &rootReader{b: b}
			got := decodeUnits(r, label.MaxSegments)
			for len(want) > len(got) && want[len(want)-1] == 0 {
				want = want[:len(want)-1]
			}
			if r.bad || len(r.b) > 0 || !slices.Equal(got, want) {
				t.Fatalf("%d units, one in %d: %v, %d bytes left", units, oneIn, r.bad, len(r.b))
			}
		}
	}
}
