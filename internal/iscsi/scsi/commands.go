package scsi

import (
	"github.com/cstor-go/cstor/internal/block"
)

const (
	opTestUnitReady  = 0x00
	opRequestSense   = 0x03
	opInquiry        = 0x12
	opModeSelect6    = 0x15
	opModeSense6     = 0x1a
	opUnmap          = 0x42
	opModeSelect10   = 0x55
	opModeSense10    = 0x5a
	opReportLuns     = 0xa0
	opMaintenanceIn  = 0xa3
	opServiceAction  = 0x9e
	saReadCapacity16 = 0x10
	saLBAStatus      = 0x12
	saReportOpcodes  = 0x0c
)

// supported is everything that the unit understands; what is not here is INVALID COMMAND OPERATION CODE.
func supported() []command {
	return []command{
		{opTestUnitReady, -1, use(6), nop},
		{opRequestSense, -1, use(6, 1, 0x01, 4, 0xff), requestSense},
		{0x08, -1, use(6, 1, 0x1f, 2, 0xff, 3, 0xff, 4, 0xff), rw(6, Read)},
		{0x0a, -1, use(6, 1, 0x1f, 2, 0xff, 3, 0xff, 4, 0xff), rw(6, Write)},
		{opInquiry, -1, use(6, 1, 0x01, 2, 0xff, 3, 0xff, 4, 0xff), inquiry},
		{opModeSelect6, -1, use(6, 1, 0x11, 4, 0xff), modeSelect},
		{opModeSense6, -1, use(6, 1, 0x08, 2, 0xff, 3, 0xff, 4, 0xff), modeSense},
		{0x1b, -1, use(6, 1, 0x01, 4, 0xf7), startStop},
		{0x1e, -1, use(6, 4, 0x03), nop},
		{0x25, -1, use(10), readCapacity10},
		{0x28, -1, use10(0xfa), rw(10, Read)},
		{0x2a, -1, use10(0xfa), rw(10, Write)},
		{0x2f, -1, use10(0xf6), rw(10, Verify)},
		{0x35, -1, use10(0x02), synchronizeCache(10)},
		{0x41, -1, use10(0xfa), writeSame(10)},
		{opUnmap, -1, use(10, 1, 0x01, 7, 0xff, 8, 0xff), unmap},
		{opModeSelect10, -1, use(10, 1, 0x11, 7, 0xff, 8, 0xff), modeSelect},
		{opModeSense10, -1, use(10, 1, 0x18, 2, 0xff, 3, 0xff, 7, 0xff, 8, 0xff), modeSense},
		{0x88, -1, use16(0xfa), rw(16, Read)},
		{0x8a, -1, use16(0xfa), rw(16, Write)},
		{0x8f, -1, use16(0xf6), rw(16, Verify)},
		{0x91, -1, use16(0x02), synchronizeCache(16)},
		{0x93, -1, use16(0xfb), writeSame(16)},
		{opServiceAction, saReadCapacity16, use(16, 1, 0x1f, 10, 0xff, 11, 0xff, 12, 0xff, 13, 0xff), readCapacity16},
		{opServiceAction, saLBAStatus, use(16, 1, 0x1f, 2, 0xff, 3, 0xff, 4, 0xff, 5, 0xff, 6, 0xff, 7, 0xff, 8, 0xff, 9, 0xff,
			10, 0xff, 11, 0xff, 12, 0xff, 13, 0xff), lbaStatus},
		{opReportLuns, -1, use(12, 2, 0xff, 6, 0xff, 7, 0xff, 8, 0xff, 9, 0xff), reportLuns},
		{opMaintenanceIn, saReportOpcodes, use(12, 1, 0x1f, 2, 0x87, 3, 0xff, 4, 0xff, 5, 0xff, 6, 0xff, 7, 0xff, 8, 0xff, 9, 0xff), reportOpcodes},
		{0xa8, -1, use12(0xfa), rw(12, Read)},
		{0xaa, -1, use12(0xfa), rw(12, Write)},
		{0xaf, -1, use12(0xf6), rw(12, Verify)},
	}
}

// use builds CDB usage data of n bytes from pairs of byte number and mask. The control byte's NACA bit is checked.
func use(n int, pairs ...int) []byte {
	u := make([]byte, n)
	for i := 0; i < len(pairs); i += 2 {
		u[pairs[i]] = byte(pairs[i+1])
	}
	u[n-1] = 0x04
	return u
}

func use10(flags int) []byte {
	return use(10, 1, flags, 2, 0xff, 3, 0xff, 4, 0xff, 5, 0xff, 6, 0x1f, 7, 0xff, 8, 0xff)
}

func use12(flags int) []byte {
	return use(12, 1, flags, 2, 0xff, 3, 0xff, 4, 0xff, 5, 0xff, 6, 0xff, 7, 0xff, 8, 0xff, 9, 0xff, 10, 0x1f)
}

func use16(flags int) []byte {
	return use(16, 1, flags, 2, 0xff, 3, 0xff, 4, 0xff, 5, 0xff, 6, 0xff, 7, 0xff, 8, 0xff, 9, 0xff, 10, 0xff, 11, 0xff,
		12, 0xff, 13, 0xff, 14, 0x1f)
}

// extent reads the LBA and the number of logical blocks of a CDB of the given size.
func extent(size int, cdb []byte) (lba, n uint64) {
	switch size {
	case 6: // SBC-3 5.8: 21 bits of LBA, and 0 blocks means 256
		if n = uint64(cdb[4]); n == 0 {
			n = 256
		}
		return uint64(be.Uint32(cdb) & 0x1fffff), n
	case 10:
		return uint64(be.Uint32(cdb[2:])), uint64(be.Uint16(cdb[7:]))
	case 12:
		return uint64(be.Uint32(cdb[2:])), uint64(be.Uint32(cdb[6:]))
	}
	return be.Uint64(cdb[2:]), uint64(be.Uint32(cdb[10:]))
}

// span checks that blocks lie inside the unit and puts their byte range in the plan.
func (u *Unit) span(lba, n uint64, p *Plan) Sense {
	if total := u.blocks(); lba > total || n > total-lba {
		return LBAOutOfRange
	}
	p.Offset, p.Length = int64(lba)*block.SectorSize, int64(n)*block.SectorSize
	return Sense{}
}

// tooLong is the answer to a transfer beyond the limits of the Block Limits page: the length field is invalid.
func tooLong(size int) Sense {
	return InvalidField(map[int]int{6: 4, 10: 7, 12: 6, 16: 10}[size], 7)
}

// rw is READ, WRITE and VERIFY with CDBs of the given size (SBC-3 5.8–5.14, 5.29–5.35).
func rw(size int, kind Kind) handler {
	return func(u *Unit, cdb []byte, p *Plan) Sense {
		if size > 6 && cdb[1]&0xe0 != 0 {
			return InvalidField(1, 7) // RDPROTECT, WRPROTECT, VRPROTECT: formatted without protection information
		}
		lba, n := extent(size, cdb)
		if s := u.span(lba, n, p); !s.IsZero() {
			return s
		}
		if p.Length > MaxTransfer {
			return tooLong(size)
		}
		p.Kind = kind
		switch kind {
		case Read:
			p.InLen = p.Length
		case Write:
			p.FUA = size > 6 && cdb[1]&0x08 != 0
			p.OutLen = p.Length
		case Verify:
			switch cdb[1] >> 1 & 3 { // BYTCHK
			case 0:
			case 1:
				p.Kind, p.OutLen = Compare, p.Length
			default:
				return InvalidField(1, 2)
			}
		}
		if p.Length == 0 {
			p.Kind = Answer
		}
		return Sense{}
	}
}

// synchronizeCache is SYNCHRONIZE CACHE (SBC-3 5.22); everything is flushed, whatever the range.
func synchronizeCache(size int) handler {
	return func(u *Unit, cdb []byte, p *Plan) Sense {
		lba, n := extent(size, cdb)
		if s := u.span(lba, n, p); !s.IsZero() {
			return s
		}
		p.Kind, p.Immed = Flush, cdb[1]&0x02 != 0
		return Sense{}
	}
}

// writeSame is WRITE SAME (SBC-3 5.44, 5.45). With UNMAP it is allowed to unmap; since unmapped blocks read as zeroes
// and the data must be what was given, only zeroes give space back, and they do so with or without UNMAP.
func writeSame(size int) handler {
	return func(u *Unit, cdb []byte, p *Plan) Sense {
		ndob := size == 16 && cdb[1]&0x01 != 0
		switch {
		case cdb[1]&0xe0 != 0:
			return InvalidField(1, 7)
		case cdb[1]&0x10 != 0:
			return InvalidField(1, 4) // ANCHOR: nothing can be anchored
		case ndob && cdb[1]&0x08 == 0:
			return InvalidField(1, 0) // without a data-out buffer there is nothing to write but by UNMAP
		}
		lba, n := extent(size, cdb)
		if s := u.span(lba, n, p); !s.IsZero() {
			return s
		}
		if n == 0 || p.Length > MaxWriteSame { // WSNZ: zero blocks does not mean "up to the end"
			return tooLong(size)
		}
		p.Kind = WriteSame
		if !ndob {
			p.OutLen = block.SectorSize
		}
		return Sense{}
	}
}

// unmap is UNMAP (SBC-3 5.28); the ranges come with the parameter list.
func unmap(u *Unit, cdb []byte, p *Plan) Sense {
	if cdb[1]&0x01 != 0 {
		return InvalidField(1, 0) // ANCHOR
	}
	return p.parameters(int(be.Uint16(cdb[7:])))
}

// parameters plans to take a parameter list of n bytes.
func (p *Plan) parameters(n int) Sense {
	if n > maxParameterList {
		return ParameterLength
	}
	if n > 0 {
		p.Kind, p.OutLen = Parameter, int64(n)
	}
	return Sense{}
}

// Parameters executes a command whose parameter list b has arrived: it returns the ranges to discard, if any.
func (u *Unit) Parameters(p *Plan, b []byte) ([]Range, Sense) {
	if p.op == opUnmap {
		return u.unmapRanges(b)
	}
	return nil, u.checkModeSelect(p, b)
}

// unmapRanges reads the UNMAP parameter list (SBC-3 table 90).
func (u *Unit) unmapRanges(b []byte) ([]Range, Sense) {
	if len(b) < 8 {
		return nil, ParameterLength
	}
	n := int(be.Uint16(b[2:])) / 16
	if n > (len(b)-8)/16 {
		n = (len(b) - 8) / 16
	}
	if n > MaxUnmapRanges {
		return nil, InvalidParameter(2)
	}
	var ranges []Range
	var sum int64
	for i := range n {
		d := b[8+16*i:]
		var p Plan
		if s := u.span(be.Uint64(d), uint64(be.Uint32(d[8:])), &p); !s.IsZero() {
			return nil, s
		}
		if sum += p.Length; sum > MaxUnmapBytes {
			return nil, InvalidParameter(8 + 16*i + 8)
		}
		if p.Length > 0 {
			ranges = append(ranges, Range{p.Offset, p.Length})
		}
	}
	return ranges, Sense{}
}

func nop(*Unit, []byte, *Plan) Sense { return Sense{} }

// startStop is START STOP UNIT (SBC-3 5.20): there is no spindle and no medium to eject, and a stop flushes.
func startStop(u *Unit, cdb []byte, p *Plan) Sense {
	switch {
	case cdb[4]&0x02 != 0:
		return InvalidField(4, 1) // LOEJ
	case cdb[4]&0xf0 == 0 && cdb[4]&0x05 == 0: // START=0, NO_FLUSH=0
		p.Kind, p.Immed = Flush, cdb[1]&0x01 != 0
	}
	return Sense{}
}
