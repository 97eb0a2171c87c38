package raid

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// coder computes parity and whatever is missing of a row. The code is the usual one of RAID-6: in GF(2^8) modulo
// x^8+x^4+x^3+x^2+1 the first parity is the sum of the data blocks, the second the sum of 2^i times data block i. Sets of
// shards are bit masks: data from bit 0 on, then parity.
type coder struct {
	data, parity int
	base         reedsolomon.Encoder

	mu     sync.RWMutex
	solved map[[2]uint64]reedsolomon.Encoder // [have, want]
}

func newCoder(data, parity int) (*coder, error) {
	rows := make([][]byte, parity)
	for i := range rows {
		rows[i] = make([]byte, data)
		x := byte(1)
		for j := range rows[i] {
			if rows[i][j] = 1; i == 1 {
				rows[i][j] = x
			}
			x = x<<1 ^ 0x1d*(x>>7)
		}
	}
	enc, err := newEncoder(data, parity, rows)
	if err != nil {
		return nil, fmt.Errorf("parity code %d+%d: %w", data, parity, err)
	}
	return &coder{data: data, parity: parity, base: enc, solved: map[[2]uint64]reedsolomon.Encoder{}}, nil
}

func newEncoder(data, parity int, rows [][]byte) (reedsolomon.Encoder, error) {
	return reedsolomon.New(data, parity, reedsolomon.WithCustomMatrix(rows), reedsolomon.WithMaxGoroutines(1))
}

// encode computes the parity of shards, data first.
func (c *coder) encode(shards [][]byte) {
	if err := c.base.Encode(shards); err != nil {
		panic(fmt.Sprintf("raid: parity of %d shards: %v", len(shards), err)) // only wrong lengths lead here
	}
}

// rebuild computes the shards in want from those in have, of which there are exactly as many as data shards. vec is
// scratch with room for data+parity.
func (c *coder) rebuild(shards [][]byte, have, want uint64, vec [][]byte) {
	if want == 0 {
		return
	}
	vec = vec[:0]
	for m := have; m != 0; m &= m - 1 {
		vec = append(vec, shards[bits.TrailingZeros64(m)])
	}
	for m := want; m != 0; m &= m - 1 {
		vec = append(vec, shards[bits.TrailingZeros64(m)])
	}
	if err := c.solve(have, want).Encode(vec); err != nil {
		panic(fmt.Sprintf("raid: shards %b from %b: %v", want, have, err))
	}
	clear(vec)
}

// solve returns the code that makes the shards in want from those in have.
func (c *coder) solve(have, want uint64) reedsolomon.Encoder {
	key := [2]uint64{have, want}
	c.mu.RLock()
	e := c.solved[key]
	c.mu.RUnlock()
	if e != nil {
		return e
	}
	if bits.OnesCount64(have) != c.data || have&want != 0 {
		panic(fmt.Sprintf("raid: shards %b from %b", want, have))
	}
	// The code is linear: its coefficients are what unit vectors give.
	n := c.data + c.parity
	rows := make([][]byte, bits.OnesCount64(want))
	for i := range rows {
		rows[i] = make([]byte, c.data)
	}
	for j, m := 0, have; m != 0; j, m = j+1, m&(m-1) {
		shards := make([][]byte, n)
		for h := have; h != 0; h &= h - 1 {
			shards[bits.TrailingZeros64(h)] = []byte{0}
		}
		shards[bits.TrailingZeros64(m)][0] = 1
		if err := c.base.Reconstruct(shards); err != nil {
			panic(fmt.Sprintf("raid: shards %b from %b: %v", want, have, err))
		}
		for i, w := 0, want; w != 0; i, w = i+1, w&(w-1) {
			rows[i][j] = shards[bits.TrailingZeros64(w)][0]
		}
	}
	e, err := newEncoder(c.data, len(rows), rows)
	if err != nil {
		panic(fmt.Sprintf("raid: shards %b from %b: %v", want, have, err))
	}
	c.mu.Lock()
	c.solved[key] = e
	c.mu.Unlock()
	return e
}
