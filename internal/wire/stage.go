package wire

import (
	"github.com/cstor-go/cstor/internal/block"
)

const (
	askedSize  = 24 // bytes of one entry of a request: u64 block, u64 epoch, u64 n
	stagedSize = 32 // of one of a reply: the same, u32 sum, u32 flags

	stagedStored = 1 << 0
	stagedData   = 1 << 1
)

// AppendStage asks for all blocks that are newer than base, here or there, as of one moment; have are the asker's.
func AppendStage(b []byte, base block.Version, have []block.Staged) []byte {
	table := make([]byte, 0, len(have)*askedSize)
	for i := range have {
		table = appendAsked(table, &have[i])
	}
	return appendPayload(b, Header{Type: TypeStage, N: base.N, Epoch: base.Epoch, Count: uint32(len(have))}, table)
}

func appendAsked(b []byte, x *block.Staged) []byte {
	b = le.AppendUint64(b, x.Block)
	b = le.AppendUint64(b, x.Version.Epoch)
	return le.AppendUint64(b, x.Version.N)
}

func parseAsked(b []byte) block.Staged {
	return block.Staged{Block: le.Uint64(b), Version: block.Version{Epoch: le.Uint64(b[8:]), N: le.Uint64(b[16:])}}
}

// Stage decodes what a TypeStage frame says that the asker has; its Version is the base. Errors wrap ErrFormat.
func (f *Frame) Stage() (have []block.Staged, err error) {
	if f.Type != TypeStage || f.Count > block.MostStaged || len(f.Payload) != int(f.Count)*askedSize {
		return nil, malformed("%v with %d bytes for %d blocks", f.Type, len(f.Payload), f.Count)
	}
	if err := f.checkTable(f.Payload); err != nil {
		return nil, err
	}
	for p := f.Payload; len(p) > 0; p = p[askedSize:] {
		x := parseAsked(p)
		if n := len(have); n > 0 && have[n-1].Block >= x.Block {
			return nil, malformed("%v with block %d behind block %d", f.Type, x.Block, have[n-1].Block)
		}
		have = append(have, x)
	}
	return have, nil
}

// AppendStageReply appends the first blocks of a reply, as many as a frame takes, and returns the others. There is one frame
// at least.
func AppendStageReply(b []byte, scan block.Version, blocks []block.Staged) (frame []byte, rest []block.Staged) {
	n := min(len(blocks), MaxBlocks)
	h := Header{Type: TypeStageReply, N: scan.N, Epoch: scan.Epoch, Count: uint32(n), Block: uint64(len(blocks) - n)}
	at := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	for i := range blocks[:n] {
		x, flags := &blocks[i], uint32(0)
		if x.Stored {
			flags |= stagedStored
		}
		if x.Data != nil {
			flags |= stagedData
		}
		b = appendAsked(b, x)
		b = le.AppendUint32(b, x.Sum)
		b = le.AppendUint32(b, flags)
	}
	table := b[at+HeaderSize:]
	h.TableSum = block.Sum(table)
	for i := range blocks[:n] {
		b = append(b, blocks[i].Data...)
	}
	h.Length = uint32(len(b) - at - HeaderSize)
	h.Put(b[at:])
	return b, blocks[n:]
}

// StageReply appends the blocks of a frame of a reply to dst, ascending, with their data verified and copied, and returns how
// many come in later frames. Its Version is the scan. Errors wrap ErrFormat or are a RemoteError.
func (f *Frame) StageReply(dst []block.Staged) (blocks []block.Staged, left uint64, err error) {
	if f.Type != TypeStageReply {
		return dst, 0, malformed("%v instead of stage-reply", f.Type)
	}
	if f.Flags != OK {
		return dst, 0, f.remoteError()
	}
	size := int(f.Count) * stagedSize
	if f.Count > MaxBlocks || size > len(f.Payload) || f.Count == 0 && f.Block > 0 || f.Block > block.MostStaged || len(dst)+int(f.Count) > block.MostStaged {
		return dst, 0, malformed("%d blocks in %d bytes, %d behind them", f.Count, len(f.Payload), f.Block)
	}
	table, data := f.Payload[:size], f.Payload[size:]
	if err := f.checkTable(table); err != nil {
		return dst, 0, err
	}
	data = append([]byte(nil), data...)
	for ; len(table) > 0; table = table[stagedSize:] {
		x := parseAsked(table)
		x.Sum = le.Uint32(table[askedSize:])
		flags := le.Uint32(table[askedSize+4:])
		x.Stored = flags&stagedStored != 0
		switch n := len(dst); {
		case n > 0 && dst[n-1].Block >= x.Block:
			return dst, 0, malformed("block %d behind block %d", x.Block, dst[n-1].Block)
		case flags&^(stagedStored|stagedData) != 0 || flags == stagedData || x.Stored && x.Version.IsZero():
			return dst, 0, malformed("block %d of version %v with flags %d", x.Block, x.Version, flags)
		}
		if flags&stagedData != 0 {
			if len(data) < block.Size {
				return dst, 0, malformed("data ends in front of block %d", x.Block)
			}
			x.Data, data = data[:block.Size:block.Size], data[block.Size:]
			if sum := block.Sum(x.Data); sum != x.Sum {
				return dst, 0, malformed("block %d has checksum %08x, its sender has %08x", x.Block, sum, x.Sum)
			}
		}
		dst = append(dst, x)
	}
	if len(data) > 0 {
		return dst, 0, malformed("%d bytes behind the last block", len(data))
	}
	return dst, f.Block, nil
}
