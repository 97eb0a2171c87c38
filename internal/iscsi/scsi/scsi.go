// Package scsi is the SCSI half of the target: it turns command descriptor blocks into plans of block I/O and answers
// everything that needs no I/O. It follows SPC-4 and SBC-3 for one direct-access logical unit with 512-byte logical
// and 4096-byte physical blocks and thin provisioning. It is pure: no sockets, no goroutines, no state that changes.
package scsi

import (
	"encoding/binary"

	"github.com/cstor-go/cstor/internal/block"
)

// Limits that the unit states in the Block Limits VPD page and holds initiators to.
const (
	MaxTransfer      = 4 << 20     // bytes in one READ, WRITE or VERIFY
	OptimalTransfer  = 1 << 20     // bytes
	MaxUnmapBytes    = 512 << 20   // bytes in all descriptors of one UNMAP
	MaxUnmapRanges   = 256         // descriptors in one UNMAP
	MaxWriteSame     = 65528 * 512 // bytes in one WRITE SAME: just below 32 MiB, in whole 4 KiB
	maxParameterList = 8 + 16*MaxUnmapRanges
)

// Status is a SCSI status code (SAM-5 5.3.1).
type Status uint8

const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

// Kind says what a Plan asks of the transport.
type Kind uint8

const (
	Answer    Kind = iota // send In; no I/O
	Read                  // read the range and send it
	Write                 // write OutLen bytes from the initiator to the range
	Verify                // read the range and send nothing (BYTCHK 0)
	Compare               // read the range and compare it with OutLen bytes from the initiator (BYTCHK 1)
	WriteSame             // write one logical block from the initiator, or zeroes when OutLen is 0, all over the range
	Flush                 // make everything completed so far stable
	Parameter             // take OutLen bytes of parameters, then call Unit.Parameters
)

// Plan is what a command comes down to.
type Plan struct {
	Kind   Kind
	FUA    bool  // complete only when on stable media
	Immed  bool  // answer at once, then do it
	Offset int64 // bytes
	Length int64 // bytes
	InLen  int64 // bytes that the command would send to the initiator
	OutLen int64 // bytes that the command would take from the initiator
	In     []byte
	op     uint8
}

// Range is a byte range of the unit.
type Range struct{ Offset, Length int64 }

// Unit is the logical unit as initiators see it. It is not changed after it was made and may be used concurrently.
type Unit struct {
	Vendor   string // at most 8 bytes
	Product  string // at most 16 bytes
	Revision string // at most 4 bytes
	Serial   string // unit serial number; the stable identity of the volume
	Target   string // iSCSI name of the target device
	PortTag  uint16 // target portal group tag
	// Size returns the capacity in bytes; it may grow at any time.
	Size func() int64
}

// handler fills in the plan for a valid CDB or returns why it is not valid.
type handler func(u *Unit, cdb []byte, p *Plan) Sense

// command describes one operation code (and service action) for dispatch and for REPORT SUPPORTED OPERATION CODES.
type command struct {
	op     uint8
	action int    // service action; -1 when the operation code has none
	usage  []byte // CDB usage data (SPC-4 6.35.3): the bits that the unit looks at
	run    handler
}

var (
	commands []command
	byOpcode [256]*command
	byAction = map[[2]uint8]*command{}
)

func init() {
	commands = supported()
	for i := range commands {
		c := &commands[i]
		if c.action < 0 {
			byOpcode[c.op] = c
		} else {
			byAction[[2]uint8{c.op, uint8(c.action)}] = c
		}
	}
}

// hasActions reports whether an operation code carries a service action in the low five bits of byte 1.
func hasActions(op uint8) bool { return op == 0x9e || op == 0xa3 }

// Start decodes a CDB of at least 16 bytes into p, which must be zero. A non-zero Sense means CHECK CONDITION. It does
// not allocate for READ and WRITE.
func (u *Unit) Start(cdb []byte, p *Plan) Sense {
	c := byOpcode[cdb[0]]
	if c == nil {
		if !hasActions(cdb[0]) {
			return InvalidOpcode
		}
		if c = byAction[[2]uint8{cdb[0], cdb[1] & 0x1f}]; c == nil {
			return InvalidField(1, 4)
		}
	}
	if cdb[len(c.usage)-1]&0x04 != 0 { // NACA (SAM-5 5.2): auto contingent allegiance is not supported
		return InvalidField(len(c.usage)-1, 2)
	}
	p.op = cdb[0]
	return c.run(u, cdb, p)
}

// IgnoresUnitAttention reports whether a command is executed although a unit attention is pending (SPC-4 5.14).
func IgnoresUnitAttention(op uint8) bool {
	return op == opInquiry || op == opReportLuns || op == opRequestSense
}

// StartNoUnit decodes a CDB for a logical unit that does not exist (SPC-4 5.11).
func (u *Unit) StartNoUnit(cdb []byte, p *Plan) Sense {
	switch cdb[0] {
	case opReportLuns:
		return u.Start(cdb, p)
	case opInquiry:
		if s := inquiry(u, cdb, p); !s.IsZero() {
			return s
		}
		if cdb[1]&1 == 0 && len(p.In) > 0 {
			p.In[0] = 0x7f // qualifier 3, type 1Fh: not capable of supporting a device here
		}
		return Sense{}
	case opRequestSense:
		p.answer(LUNotSupported.Fixed(), int(cdb[4]))
		return Sense{}
	}
	return LUNotSupported
}

// answer plans to send b, cut to the allocation length.
func (p *Plan) answer(b []byte, allocation int) {
	if len(b) > allocation {
		b = b[:allocation]
	}
	p.Kind, p.In, p.InLen = Answer, b, int64(len(b))
}

func (u *Unit) blocks() uint64 { return uint64(u.Size()) / block.SectorSize }

var be = binary.BigEndian
