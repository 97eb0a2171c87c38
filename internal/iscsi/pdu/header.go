// Package pdu is what both ends of an iSCSI connection share (RFC 7143): the layout of protocol data units, text
// keys, operational parameters and digests, a Reader that takes many PDUs from one read of the socket without copying
// their data, and a Sender that puts many PDUs into one write.
package pdu

import "encoding/binary"

// HeaderSize is the length of a basic header segment.
const HeaderSize = 48

// Opcode is the operation code of a PDU (RFC 7143 11.2.1.2).
type Opcode uint8

const (
	NopOut       Opcode = 0x00
	Command      Opcode = 0x01
	TaskMgmt     Opcode = 0x02
	LoginReq     Opcode = 0x03
	TextReq      Opcode = 0x04
	DataOut      Opcode = 0x05
	LogoutReq    Opcode = 0x06
	SNACK        Opcode = 0x10
	NopIn        Opcode = 0x20
	Response     Opcode = 0x21
	TaskMgmtResp Opcode = 0x22
	LoginResp    Opcode = 0x23
	TextResp     Opcode = 0x24
	DataIn       Opcode = 0x25
	LogoutResp   Opcode = 0x26
	R2T          Opcode = 0x31
	Async        Opcode = 0x32
	Reject       Opcode = 0x3f
)

// Flags in byte 1. Which apply depends on the opcode.
const (
	Final     = 0x80 // all: last PDU of a sequence
	ReadBit   = 0x40 // Command: expects data from the target
	WriteBit  = 0x20 // Command: expects to send data
	Overflow  = 0x04 // Response, DataIn: residual overflow
	Underflow = 0x02 // Response, DataIn: residual underflow
	StatusBit = 0x01 // DataIn: carries the status
	Transit   = 0x80 // login: ready to go to the next stage
	Continue  = 0x40 // login, text: more text follows
	immediate = 0x40 // in byte 0
)

// NoTag is the reserved value of task and transfer tags.
const NoTag = 0xffffffff

// Task management functions (RFC 7143 11.5.1) and responses (11.6.1).
const (
	AbortTask       = 1
	AbortTaskSet    = 2
	ClearACA        = 3
	ClearTaskSet    = 4
	LUNReset        = 5
	TargetWarmReset = 6
	TargetColdReset = 7
	TaskReassign    = 8

	FunctionComplete     = 0
	NoSuchTask           = 1
	NoSuchLUN            = 2
	NoReassign           = 4
	FunctionNotSupported = 5
	FunctionRejected     = 255
)

// Reasons for a Reject (RFC 7143 11.17.1).
const (
	RejectDataDigest    = 0x02
	RejectProtocolError = 0x04
	RejectNotSupported  = 0x05
	RejectInvalidField  = 0x09
)

// Asynchronous events (RFC 7143 11.9.1).
const (
	AsyncSCSI           = 0
	AsyncRequestLogout  = 1
	AsyncDropConnection = 2
	AsyncDropSession    = 3
)

// Login stages (RFC 7143 11.12.3).
const (
	StageSecurity    = 0
	StageOperational = 1
	StageFull        = 3
)

// Header is a basic header segment (RFC 7143 11.2.1).
type Header [HeaderSize]byte

// New returns a header with its opcode and byte 1 set.
func New(op Opcode, flags byte) (h Header) {
	h[0], h[1] = byte(op), flags
	return h
}

// Opcode returns the operation code.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3f) }

// Immediate reports whether a request is for immediate delivery.
func (h *Header) Immediate() bool { return h[0]&immediate != 0 }

// SetImmediate marks a request for immediate delivery.
func (h *Header) SetImmediate() { h[0] |= immediate }

// Has reports whether a flag of byte 1 is set.
func (h *Header) Has(flag byte) bool { return h[1]&flag != 0 }

// AHSLen returns the length of the additional header segments in bytes.
func (h *Header) AHSLen() int { return int(h[4]) * 4 }

// DataLen returns the length of the data segment in bytes, without padding.
func (h *Header) DataLen() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

func (h *Header) setDataLen(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// LUN returns the logical unit number field.
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// SetLUN sets the logical unit number field.
func (h *Header) SetLUN(lun uint64) { binary.BigEndian.PutUint64(h[8:], lun) }

// ITT returns the initiator task tag.
func (h *Header) ITT() uint32 { return h.u32(16) }

// SetITT sets the initiator task tag.
func (h *Header) SetITT(v uint32) { h.put32(16, v) }

// TTT returns the target transfer tag.
func (h *Header) TTT() uint32 { return h.u32(20) }

// SetTTT sets the target transfer tag.
func (h *Header) SetTTT(v uint32) { h.put32(20, v) }

// Expected returns a command's expected data transfer length in bytes.
func (h *Header) Expected() uint32 { return h.u32(20) }

// SetExpected sets a command's expected data transfer length.
func (h *Header) SetExpected(v uint32) { h.put32(20, v) }

// RefTag returns the referenced task tag of a task management request.
func (h *Header) RefTag() uint32 { return h.u32(20) }

// SetRefTag sets the referenced task tag.
func (h *Header) SetRefTag(v uint32) { h.put32(20, v) }

// CID returns the connection ID of a login or logout request.
func (h *Header) CID() uint16 { return binary.BigEndian.Uint16(h[20:]) }

// SetCID sets the connection ID.
func (h *Header) SetCID(v uint16) { binary.BigEndian.PutUint16(h[20:], v) }

// CmdSN returns the command sequence number of a request.
func (h *Header) CmdSN() uint32 { return h.u32(24) }

// SetCmdSN sets the command sequence number.
func (h *Header) SetCmdSN(v uint32) { h.put32(24, v) }

// ExpStatSN returns the status sequence number that the initiator expects next.
func (h *Header) ExpStatSN() uint32 { return h.u32(28) }

// SetExpStatSN sets the status sequence number that the initiator expects next.
func (h *Header) SetExpStatSN(v uint32) { h.put32(28, v) }

// RefCmdSN returns the CmdSN of the task that a task management request refers to.
func (h *Header) RefCmdSN() uint32 { return h.u32(32) }

// SetRefCmdSN sets the CmdSN of the referenced task.
func (h *Header) SetRefCmdSN(v uint32) { h.put32(32, v) }

// CDB returns the command descriptor block of a command; the slice aliases the header.
func (h *Header) CDB() []byte { return h[32:48] }

// StatSN returns the status sequence number of a response.
func (h *Header) StatSN() uint32 { return h.u32(24) }

// ExpCmdSN returns the command sequence number that the target expects next.
func (h *Header) ExpCmdSN() uint32 { return h.u32(28) }

// MaxCmdSN returns the last command sequence number that the target accepts.
func (h *Header) MaxCmdSN() uint32 { return h.u32(32) }

// SetNumbers sets a response's StatSN, ExpCmdSN and MaxCmdSN.
func (h *Header) SetNumbers(stat, exp, max uint32) {
	h.put32(24, stat)
	h.put32(28, exp)
	h.put32(32, max)
}

// DataSN returns the number of a Data-In or Data-Out PDU in its sequence, or of an R2T in its task.
func (h *Header) DataSN() uint32 { return h.u32(36) }

// SetDataSN sets the data sequence number.
func (h *Header) SetDataSN(v uint32) { h.put32(36, v) }

// Offset returns the buffer offset in bytes of a Data-In, Data-Out or R2T.
func (h *Header) Offset() uint32 { return h.u32(40) }

// SetOffset sets the buffer offset.
func (h *Header) SetOffset(v uint32) { h.put32(40, v) }

// Desired returns the desired data transfer length of an R2T in bytes.
func (h *Header) Desired() uint32 { return h.u32(44) }

// SetDesired sets the desired data transfer length.
func (h *Header) SetDesired(v uint32) { h.put32(44, v) }

// Residual returns the residual count of a Response or Data-In.
func (h *Header) Residual() uint32 { return h.u32(44) }

// SetResidual sets the residual count.
func (h *Header) SetResidual(v uint32) { h.put32(44, v) }

// Stages returns the current and next stage of a login PDU.
func (h *Header) Stages() (current, next int) { return int(h[1] >> 2 & 3), int(h[1] & 3) }

// SessionID returns the ISID and TSIH of a login PDU.
func (h *Header) SessionID() (isid [6]byte, tsih uint16) {
	return [6]byte(h[8:14]), binary.BigEndian.Uint16(h[14:])
}

// SetSessionID sets the ISID and TSIH of a login PDU.
func (h *Header) SetSessionID(isid [6]byte, tsih uint16) {
	copy(h[8:], isid[:])
	binary.BigEndian.PutUint16(h[14:], tsih)
}

func (h *Header) u32(at int) uint32      { return binary.BigEndian.Uint32(h[at:]) }
func (h *Header) put32(at int, v uint32) { binary.BigEndian.PutUint32(h[at:], v) }

// Before reports whether sequence number a comes before b in serial number arithmetic (RFC 1982).
func Before(a, b uint32) bool { return int32(a-b) < 0 }
