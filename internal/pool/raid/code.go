package raid

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// coder computes parity and whatever is missing of a row. The code is the usual one of RAID-6: in GF(2^8) modulo
// x^8+x^4+x^3+x^2+1 the first parity is the sum of the data blocks, the second the sum of 2^i times data block i. Sets
// of shards are bit masks: data from bit 0 on, then parity.
type coder struct {
	data, parity int
	low          reedsolomon.LowLevel
	base         reedsolomon.Encoder
	rows         [][]byte // coefficients of the parity

	mu     sync.RWMutex
	solved map[[2]uint64][][]byte // [have, want]: the coefficients of what is wanted
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
	base, err := reedsolomon.New(data, parity, reedsolomon.WithCustomMatrix(rows), reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("parity code %d+%d: %w", data, parity, err)
	}
	return &coder{data: data, parity: parity, base: base, rows: rows, solved: map[[2]uint64][][]byte{}}, nil
}

// encode computes the parity of shards, data first.
func (c *coder) encode(shards [][]byte) {
	for i, row := range c.rows {
		c.combine(row, shards, maskOf(c.data), shards[c.data+i])
	}
}

// combine sets out to the sum of the shards in from, each times its coefficient. It works in pieces that stay in the
// first level of cache, and does not allocate, as the library's own Encode does.
func (c *coder) combine(row []byte, shards [][]byte, from uint64, out []byte) {
	for at := 0; at < len(out); at += blockSize {
		end := min(at+blockSize, len(out))
		i := 0
		for m := from; m != 0; m &= m - 1 {
			in := shards[bits.TrailingZeros64(m)][at:end]
			if i == 0 {
				c.low.GalMulSlice(row[i], in, out[at:end])
			} else {
				c.low.GalMulSliceXor(row[i], in, out[at:end])
			}
			i++
		}
	}
}

// rebuild computes the shards in want from those in have, of which there are exactly as many as data shards.
func (c *coder) rebuild(shards [][]byte, have, want uint64) {
	if want == 0 {
		return
	}
	rows := c.solve(have, want)
	for i, m := 0, want; m != 0; i, m = i+1, m&(m-1) {
		c.combine(rows[i], shards, have, shards[bits.TrailingZeros64(m)])
	}
}

// solve returns the coefficients that make the shards in want from those in have.
func (c *coder) solve(have, want uint64) [][]byte {
	key := [2]uint64{have, want}
	c.mu.RLock()
	rows := c.solved[key]
	c.mu.RUnlock()
	if rows != nil {
		return rows
	}
	if bits.OnesCount64(have) != c.data || have&want != 0 {
		panic(fmt.Sprintf("raid: shards %b from %b", want, have))
	}
	rows = make([][]byte, bits.OnesCount64(want))
	for i := range rows {
		rows[i] = make([]byte, c.data)
	}
	// The code is linear: its coefficients are what unit vectors give.
	for j, m := 0, have; m != 0; j, m = j+1, m&(m-1) {
		shards := make([][]byte, c.data+c.parity)
		for h := have; h != 0; h &= h - 1 {
			shards[bits.TrailingZeros64(h)] = []byte{0}
		}
		shards[bits.TrailingZeros64(m)][0] = 1
		if err := c.base.Reconstruct(shards); err != nil {
			panic(fmt.Sprintf("raid: shards %b from %b: %v", want, have, err)) // only too few shards lead here
		}
		for i, w := 0, want; w != 0; i, w = i+1, w&(w-1) {
			rows[i][j] = shards[bits.TrailingZeros64(w)][0]
		}
	}
	c.mu.Lock()
	c.solved[key] = rows
	c.mu.Unlock()
	return rows
}
