package wal

import "github.com/cstor-go/cstor/internal/block"

// The data area of a batch, behind its header:
//
//	blocks stored as they are, and state records, in the order of their records
//	compressed blocks, one after the other in the same order, each whole granules, across block borders
//	zeroes up to a whole number of blocks
//
// This file is the only place that knows it.

// DataLen returns what the data of a record takes: whole blocks, and bytes of compressed blocks. lens is as in Record.
func DataLen(k Kind, count uint32, lens []uint8) (raw, packed int) {
	if lens == nil {
		return DataBlocks(k, count), 0
	}
	for _, l := range lens {
		if l == MaxLen {
			raw++
		} else {
			packed += int(l) * Granule
		}
	}
	return raw, packed
}

// Granules returns the stored length of the i-th block of a record with data.
func (r *Record) Granules(i int) uint8 {
	if r.Lens == nil {
		return MaxLen
	}
	return r.Lens[i]
}

// AreaBlocks returns the number of data blocks of a batch with so many whole blocks and so many bytes of compressed
// blocks in all.
func AreaBlocks(raw, packed int) int { return raw + (packed+block.Size-1)/block.Size }

// Area walks through the data area of a batch, record by record and block by block.
type Area struct {
	Raw    uint64 // where the next block is that is stored as it is
	Packed uint64 // where the next compressed block is
}

// MakeArea returns the beginning of the data area that is at base and has so many whole blocks.
func MakeArea(base uint64, raw int) Area {
	return Area{Raw: base, Packed: base + uint64(raw)*block.Size}
}

// Next returns where the next block is, whose stored length is so many granules, and goes behind it. A block of all
// zeroes is nowhere.
func (a *Area) Next(granules uint8) (at uint64) {
	if granules == MaxLen {
		at = a.Raw
		a.Raw += block.Size
		return at
	}
	at = a.Packed
	a.Packed += uint64(granules) * Granule
	return at
}

// Skip goes behind the data of a record.
func (a *Area) Skip(k Kind, count uint32, lens []uint8) {
	raw, packed := DataLen(k, count, lens)
	a.Raw += uint64(raw) * block.Size
	a.Packed += uint64(packed)
}
