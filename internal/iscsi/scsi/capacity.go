package scsi

import "github.com/cstor-go/cstor/internal/block"

// readCapacity10 is READ CAPACITY(10) (SBC-3 5.15).
func readCapacity10(u *Unit, cdb []byte, p *Plan) Sense {
	if cdb[8]&0x01 == 0 && be.Uint32(cdb[2:]) != 0 {
		return InvalidField(2, 7) // an LBA without PMI
	}
	b := make([]byte, 8)
	be.PutUint32(b, uint32(min(u.blocks()-1, 0xffffffff)))
	be.PutUint32(b[4:], block.SectorSize)
	p.answer(b, len(b))
	return Sense{}
}

// readCapacity16 is READ CAPACITY(16) (SBC-3 5.16).
func readCapacity16(u *Unit, cdb []byte, p *Plan) Sense {
	b := make([]byte, 32)
	be.PutUint64(b, u.blocks()-1)
	be.PutUint32(b[8:], block.SectorSize)
	b[13] = block.Shift - 9 // logical blocks per physical block exponent
	b[14] = 0xc0            // LBPME, LBPRZ; lowest aligned LBA 0
	p.answer(b, int(be.Uint32(cdb[10:])))
	return Sense{}
}

// lbaStatus is GET LBA STATUS (SBC-3 5.4). A device does not tell what is mapped, so the rest of the unit is one extent
// of status 0, mapped, for which an initiator may assume nothing.
func lbaStatus(u *Unit, cdb []byte, p *Plan) Sense {
	lba, total := be.Uint64(cdb[2:]), u.blocks()
	if lba >= total {
		return LBAOutOfRange
	}
	b := make([]byte, 24)
	be.PutUint32(b, uint32(len(b)-4))
	be.PutUint64(b[8:], lba)
	be.PutUint32(b[16:], uint32(min(total-lba, 0xffffffff)))
	p.answer(b, int(be.Uint32(cdb[10:])))
	return Sense{}
}

// reportLuns is REPORT LUNS (SPC-4 6.33): LUN 0, or nothing when only well-known units are asked for.
func reportLuns(u *Unit, cdb []byte, p *Plan) Sense {
	allocation := int(be.Uint32(cdb[6:]))
	b := make([]byte, 16)
	switch cdb[2] {
	case 0x00, 0x02:
		b[3] = 8
	case 0x01:
		b = b[:8]
	default:
		return InvalidField(2, 7)
	}
	if allocation < 16 {
		return InvalidField(6, 7)
	}
	p.answer(b, allocation)
	return Sense{}
}

// requestSense is REQUEST SENSE (SPC-4 6.39); all sense is delivered with the status, so there is none left. The
// transport answers pending unit attentions before it comes here.
func requestSense(u *Unit, cdb []byte, p *Plan) Sense {
	p.answerSense(Sense{}, cdb)
	return Sense{}
}

// RequestSense plans the answer to a REQUEST SENSE command that delivers s.
func (p *Plan) RequestSense(s Sense, cdb []byte) { p.answerSense(s, cdb) }

func (p *Plan) answerSense(s Sense, cdb []byte) {
	b := s.Fixed()
	if cdb[1]&0x01 != 0 {
		b = s.Descriptor()
	}
	p.answer(b, int(cdb[4]))
}

// IsRequestSense reports whether a CDB is REQUEST SENSE.
func IsRequestSense(cdb []byte) bool { return cdb[0] == opRequestSense }

// reportOpcodes is REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
func reportOpcodes(u *Unit, cdb []byte, p *Plan) Sense {
	allocation := int(be.Uint32(cdb[6:]))
	timeouts := cdb[2]&0x80 != 0 // RCTD
	op, action := cdb[3], be.Uint16(cdb[4:])
	switch cdb[2] & 0x07 {
	case 0:
		p.answer(allOpcodes(timeouts), allocation)
		return Sense{}
	case 1:
		if hasActions(op) {
			return InvalidField(2, 2)
		}
		p.answer(oneOpcode(byOpcode[op], timeouts), allocation)
		return Sense{}
	case 2:
		if !hasActions(op) {
			return InvalidField(2, 2)
		}
		p.answer(oneOpcode(byAction[[2]uint8{op, uint8(action)}], timeouts), allocation)
		return Sense{}
	case 3:
		c := byOpcode[op]
		if hasActions(op) && action < 0x20 {
			c = byAction[[2]uint8{op, uint8(action)}]
		}
		p.answer(oneOpcode(c, timeouts), allocation)
		return Sense{}
	}
	return InvalidField(2, 2)
}

// noTimeouts is a command timeouts descriptor that states none (SPC-4 6.35.4).
var noTimeouts = []byte{0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func allOpcodes(timeouts bool) []byte {
	b := make([]byte, 4)
	for _, c := range commands {
		d := []byte{c.op, 0, 0, 0, 0, 0, 0, byte(len(c.usage))}
		if c.action >= 0 {
			d[3], d[5] = byte(c.action), 0x01 // SERVACTV
		}
		if timeouts {
			d[5] |= 0x02 // CTDP
			d = append(d, noTimeouts...)
		}
		b = append(b, d...)
	}
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

func oneOpcode(c *command, timeouts bool) []byte {
	if c == nil {
		return []byte{0, 1, 0, 0} // SUPPORT: not supported
	}
	b := []byte{0, 3, 0, byte(len(c.usage)), c.op}
	b = append(b, c.usage[1:]...)
	if c.action >= 0 {
		b[5] = byte(c.action)
	}
	if timeouts {
		b[1] |= 0x80
		b = append(b, noTimeouts...)
	}
	return b
}
