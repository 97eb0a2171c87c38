package replica

import (
	"errors"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/wire"
)

// Read replies are made in buffers of these sizes: a block, 64 KiB, 1 MiB and the largest, each with its head.
var replyBuffers = [...]struct {
	blocks uint32
	pool   *block.BufferPool
}{
	{1, replyPool(1)}, {16, replyPool(16)}, {256, replyPool(256)}, {wire.MaxBlocks, replyPool(wire.MaxBlocks)},
}

func replyPool(blocks uint32) *block.BufferPool {
	return block.NewBufferPool(wire.ReadReplyHeadSize(blocks) + int(blocks)*block.Size)
}

func replyBuffer(blocks uint32) *block.Buffer {
	for _, b := range replyBuffers {
		if blocks <= b.blocks {
			return b.pool.Get()
		}
	}
	panic("replica: read larger than a frame")
}

// read answers a read. It sees every operation that came before it. Only this goroutine can make the replica
// incomplete, so that what the member allowed stays allowed until the reply is queued.
func (s *session) read(f *wire.Frame) error {
	first, count, err := f.Read()
	if err != nil {
		return err
	}
	s.a.mu.Lock()
	err = s.a.member.MayRead(s.id)
	s.a.mu.Unlock()
	if err != nil {
		return err
	}
	if end := first + uint64(count); end > uint64(s.a.r.Size()+block.Size-1)>>block.Shift {
		s.frame = wire.AppendReadError(s.frame[:0], f.Tag, first, wire.CodeError, "read outside of the replica")
		s.out.AppendCopy(s.frame)
		return nil
	}
	buf := replyBuffer(count)
	head := wire.ReadReplyHeadSize(count)
	b := buf.B[:head+int(count)*block.Size]
	if cap(s.sums) < int(count) {
		s.sums = make([]uint32, count)
	}
	sums := s.sums[:count] // no operations are gathered now
	if err := s.a.r.Read(first, b[head:], sums); err != nil {
		buf.Release()
		code := wire.CodeError
		if errors.Is(err, pool.ErrChecksum) {
			code = wire.CodeMedium
		}
		s.a.note(err)
		s.frame = wire.AppendReadError(s.frame[:0], f.Tag, first, code, err.Error())
		s.out.AppendCopy(s.frame)
		return nil
	}
	wire.PutReadReply(b, f.Tag, first, sums)
	s.answer(b, buf)
	return nil
}

// answer queues data. Many requests come with one read: their answers wait for one another, too.
func (s *session) answer(b []byte, owner wire.Ref) {
	s.out.Append(b, owner)
	if s.answered += int64(len(b)); s.answered > s.a.server.share.Load()/2 {
		s.pause()
	}
}
