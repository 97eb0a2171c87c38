package harness

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Model says what a volume may contain, sector by sector, and drives random I/O that checks it. Each write of a sector
// has a content of its own. After a request that failed a sector may have either content, until it is read: what was read
// once must not be read differently later.
type Model struct {
	sectors int

	mu     sync.Mutex
	next   uint32
	now    []uint32         // content of each sector; 0: zeroes
	unsure map[int][]uint32 // other contents that a sector may have
	busy   []bool           // in a request under way
	ops    int
	failed int
	stall  time.Duration // longest time that a request took
}

// NewModel returns the model of a volume of size bytes that reads as zeroes.
func NewModel(size int64) *Model {
	n := int(size / block.SectorSize)
	return &Model{sectors: n, now: make([]uint32, n), busy: make([]bool, n), unsure: map[int][]uint32{}}
}

// fill makes content number c of a sector.
func fill(b []byte, sector int, c uint32) {
	if c == 0 {
		clear(b)
		return
	}
	x := uint64(sector)<<32 | uint64(c)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], x)
		x = x*6364136223846793005 + 1442695040888963407
	}
}

// check compares one sector that was read.
func (m *Model) check(b []byte, sector int) error {
	var want [block.SectorSize]byte
	may := append([]uint32{m.now[sector]}, m.unsure[sector]...)
	for _, c := range may {
		if fill(want[:], sector, c); bytes.Equal(b, want[:]) {
			m.now[sector] = c
			delete(m.unsure, sector)
			return nil
		}
	}
	x := binary.LittleEndian.Uint64(b)
	return fmt.Errorf("sector %d (block %d) may have contents %d, has %d of sector %d", sector, sector/8, may, uint32(x), x>>32)
}

// claim marks a range as busy; false if some of it is.
func (m *Model) claim(first, n int) bool {
	if slices.Contains(m.busy[first:first+n], true) {
		return false
	}
	for i := range n {
		m.busy[first+i] = true
	}
	return true
}

func (m *Model) unclaim(first, n int) { clear(m.busy[first : first+n]) }

// Ops returns how many requests were made and how many of them failed.
func (m *Model) Ops() (ops, failed int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops, m.failed
}

// Longest returns the longest time that a request took since the last call.
func (m *Model) Longest() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.stall
	m.stall = 0
	return d
}

// Step makes one random request of c. The error is a wrong content; a request that fails is none.
func (m *Model) Step(c Client, rnd *rand.Rand) error {
	n := 1 + rnd.IntN(16)
	if rnd.IntN(20) == 0 {
		n = 1 + rnd.IntN(min(4096, m.sectors))
	}
	first := rnd.IntN(m.sectors - n + 1)
	if rnd.IntN(2) == 0 { // whole blocks
		first, n = first&^7, min((n+7)&^7, m.sectors-first&^7)
	}
	m.mu.Lock()
	if !m.claim(first, n) {
		m.mu.Unlock()
		return nil
	}
	m.next++
	content := m.next
	m.mu.Unlock()
	off, length := int64(first)*block.SectorSize, int64(n)*block.SectorSize
	touched := [2]int{first, first + n}
	var err, wrong error
	start := time.Now()
	switch k := rnd.IntN(100); {
	case k < 55:
		b := make([]byte, length)
		for i := range n {
			fill(b[i*block.SectorSize:][:block.SectorSize], first+i, content)
		}
		err = c.Write(b, off, rnd.IntN(20) == 0)
	case k < 90:
		b := make([]byte, length)
		err = c.Read(b, off)
		touched = [2]int{}
		if err == nil {
			m.mu.Lock()
			for i := 0; i < n && wrong == nil; i++ {
				wrong = m.check(b[i*block.SectorSize:][:block.SectorSize], first+i)
			}
			m.mu.Unlock()
		}
	case k < 94:
		content = 0
		err = c.WriteZeroes(off, length)
	case k < 98:
		content = 0
		touched = [2]int{(first + 7) &^ 7, (first + n) &^ 7} // whole blocks only
		err = c.Discard(off, length)
	default:
		touched = [2]int{}
		err = c.Flush()
	}
	took := time.Since(start)
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := touched[0]; s < touched[1]; s++ {
		if err == nil {
			m.now[s] = content
			delete(m.unsure, s)
		} else {
			m.unsure[s] = append(m.unsure[s], content)
		}
	}
	m.unclaim(first, n)
	m.ops++
	m.stall = max(m.stall, took)
	if err != nil {
		m.failed++
	}
	return wrong
}

// Verify reads everything and checks it. Nothing else may be under way.
func (m *Model) Verify(c Client) error {
	const step = 2048
	b := make([]byte, step*block.SectorSize)
	for first := 0; first < m.sectors; first += step {
		n := min(step, m.sectors-first)
		if err := c.Read(b[:n*block.SectorSize], int64(first)*block.SectorSize); err != nil {
			return fmt.Errorf("read at sector %d: %w", first, err)
		}
		m.mu.Lock()
		for i := range n {
			if err := m.check(b[i*block.SectorSize:][:block.SectorSize], first+i); err != nil {
				m.mu.Unlock()
				return err
			}
		}
		m.mu.Unlock()
	}
	return nil
}

// Load runs Step with some requests at a time until Stop.
type Load struct {
	stop  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	wrong error
}

// NewLoad starts a load of depth requests at a time; connect gives the client that the next request goes to, and a nil
// Device has the worker wait a little.
func NewLoad(m *Model, depth int, seed uint64, connect func() Client) *Load {
	l := &Load{stop: make(chan struct{})}
	for i := range depth {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				c := connect()
				if c.Device == nil {
					time.Sleep(time.Millisecond)
					continue
				}
				if err := m.Step(c, rnd); err != nil {
					l.mu.Lock()
					l.wrong = err
					l.mu.Unlock()
					return
				}
			}
		})
	}
	return l
}

// Wrong returns the first wrong content seen so far.
func (l *Load) Wrong() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wrong
}

// Stop ends the load, waits for what is under way, and returns the first wrong content.
func (l *Load) Stop() error {
	close(l.stop)
	l.wg.Wait()
	return l.Wrong()
}
