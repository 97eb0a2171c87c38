package wire

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// kinds lists the messages; a message's kind on the wire is its position here, so that entries are only ever appended.
var kinds = []volume.Message{
	1: volume.Claim{}, 2: volume.Found{}, 3: volume.Join{}, 4: volume.Stream{}, 5: volume.Promote{}, 6: volume.SetList{},
	7: volume.Drop{}, 8: volume.Ping{},
	9: volume.Register{}, 10: volume.Promised{}, 11: volume.Refused{}, 12: volume.Founded{}, 13: volume.JoinReady{},
	14: volume.Progress{}, 15: volume.Rebuilt{}, 16: volume.JoinFailed{}, 17: volume.Promoted{}, 18: volume.ListSet{},
	19: volume.Space{}, 20: volume.Failed{}, 21: volume.Pong{}, 22: volume.Release{}, 23: volume.Counted{},
	24: volume.Stage{}, 25: volume.Staged{}, 26: volume.StageFailed{}, 27: volume.Pace{},
}

var kindOf = func() map[reflect.Type]uint8 {
	m := make(map[reflect.Type]uint8, len(kinds))
	for k, msg := range kinds {
		if msg != nil {
			m[reflect.TypeOf(msg)] = uint8(k)
		}
	}
	return m
}()

// AppendMessage appends a control message's frame to b.
func AppendMessage(b []byte, m volume.Message) ([]byte, error) {
	kind, ok := kindOf[reflect.TypeOf(m)]
	if !ok {
		return b, fmt.Errorf("wire: message of type %T", m)
	}
	return appendJSON(b, Header{Type: TypeMessage, Flags: kind}, m)
}

// Message decodes a control message. Errors wrap ErrFormat.
func (f *Frame) Message() (volume.Message, error) {
	if f.Type != TypeMessage || int(f.Flags) >= len(kinds) || kinds[f.Flags] == nil {
		return nil, malformed("%v of kind %d is no message", f.Type, f.Flags)
	}
	p := reflect.New(reflect.TypeOf(kinds[f.Flags]))
	if err := f.json(p.Interface()); err != nil {
		return nil, err
	}
	return p.Elem().Interface().(volume.Message), nil
}

// appendJSON appends a frame whose payload is v.
func appendJSON(b []byte, h Header, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return b, fmt.Errorf("wire: %T: %w", v, err)
	}
	if len(payload) > MaxMessage {
		return b, fmt.Errorf("wire: %T of %d bytes, at most %d", v, len(payload), MaxMessage)
	}
	return appendPayload(b, h, payload), nil
}

// appendPayload appends a frame whose payload is covered by TableSum.
func appendPayload(b []byte, h Header, payload []byte) []byte {
	h.Length, h.TableSum = uint32(len(payload)), block.Sum(payload)
	b = append(h.append(b), payload...)
	return b
}

func (h *Header) append(b []byte) []byte {
	n := len(b)
	b = slices.Grow(b, HeaderSize)[:n+HeaderSize]
	h.Put(b[n:])
	return b
}

// checkTable verifies a payload, or its table part, against TableSum.
func (f *Frame) checkTable(table []byte) error {
	if sum := block.Sum(table); sum != f.TableSum {
		return malformed("%v: payload checksum %08x, computed %08x", f.Type, f.TableSum, sum)
	}
	return nil
}

func (f *Frame) json(v any) error {
	if err := f.checkTable(f.Payload); err != nil {
		return err
	}
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return malformed("%v: %v", f.Type, err)
	}
	return nil
}

// FlushMark returns a flush mark: the replica sends an Ack as soon as what it has applied up to n is stable.
func FlushMark(n uint64) Header { return Header{Type: TypeFlush, N: n} }

// Ack returns an acknowledgement of all operations up to number applied, and of those up to stable as stable.
func Ack(applied, stable uint64) Header { return Header{Type: TypeAck, N: applied, Epoch: stable} }

// Ack returns the numbers of an acknowledgement.
func (f *Frame) Ack() (applied, stable uint64) { return f.N, f.Epoch }
