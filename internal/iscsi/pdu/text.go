package pdu

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cstor-go/cstor/internal/block"
)

// Pair is one key=value of a text segment.
type Pair struct{ Key, Value string }

// Limits of text (RFC 7143 6.1).
const (
	maxKey   = 63
	maxValue = 8192
)

// ParseText splits a text data segment into its pairs.
func ParseText(b []byte) ([]Pair, error) {
	var pairs []Pair
	for len(b) > 0 {
		one, rest, ended := bytes.Cut(b, []byte{0})
		if b = rest; len(one) == 0 {
			continue // padding inside the segment
		}
		if !ended {
			return nil, errors.New("text: pair does not end in a zero byte")
		}
		key, value, ok := bytes.Cut(one, []byte{'='})
		if !ok || len(key) == 0 || len(key) > maxKey || len(value) > maxValue {
			return nil, fmt.Errorf("text: malformed pair %.80q", one)
		}
		pairs = append(pairs, Pair{string(key), string(value)})
	}
	return pairs, nil
}

// AppendText appends pairs to a text data segment.
func AppendText(b []byte, pairs ...Pair) []byte {
	for _, p := range pairs {
		b = append(append(append(append(b, p.Key...), '='), p.Value...), 0)
	}
	return b
}

// ReadOne reads a single PDU without digests, as the login phase uses it. The data is at most limit bytes.
func ReadOne(r io.Reader, limit int) (h Header, data []byte, err error) {
	if _, err = io.ReadFull(r, h[:]); err != nil {
		return h, nil, err
	}
	n := h.DataLen()
	if n > limit || h.AHSLen() > 0 {
		return h, nil, fmt.Errorf("PDU %#x with %d bytes of data, %d of additional header: limit %d and 0", h.Opcode(), n, h.AHSLen(), limit)
	}
	data = make([]byte, n+padding(n))
	if _, err = io.ReadFull(r, data); err != nil {
		return h, nil, err
	}
	return h, data[:n], nil
}

// WriteOne writes a single PDU without digests in one write.
func WriteOne(w io.Writer, h *Header, data []byte) error {
	h.setDataLen(len(data))
	b := append(append(make([]byte, 0, HeaderSize+len(data)+3), h[:]...), data...)
	_, err := w.Write(append(b, zeroes[:padding(len(data))]...))
	return err
}

var zeroes [4]byte

func padding(n int) int { return -n & 3 }

// digest is CRC-32C, sent low byte first (RFC 7143 13.1).
func digest(b []byte) uint32 { return block.Sum(b) }
