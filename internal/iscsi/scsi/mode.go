package scsi

import (
	"bytes"

	"github.com/cstor-go/cstor/internal/block"
)

// modePages are the mode pages in the order of their codes; nothing in them can be changed.
var modePages = [][]byte{
	{0x01, 0x0a, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0},                         // read-write error recovery: AWRE, ARRE
	{0x08, 0x12, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // caching (SBC-3 6.5.6): WCE=1, RCD=0
	{0x0a, 0x0a, 0x02, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0},                // control (SPC-4 7.5.8): unrestricted reordering, no D_SENSE
	{0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0},                         // informational exceptions: DEXCPT
}

// modeSense is MODE SENSE(6) and (10) (SPC-4 6.11, 6.12).
func modeSense(u *Unit, cdb []byte, p *Plan) Sense {
	six := cdb[0] == opModeSense6
	allocation := int(cdb[4])
	if !six {
		allocation = int(be.Uint16(cdb[7:]))
	}
	control, page, subpage := cdb[2]>>6, cdb[2]&0x3f, cdb[3]
	if control == 3 {
		return SavingNotSupported
	}
	if subpage != 0 && !(subpage == 0xff && page == 0x3f) {
		return InvalidField(3, 7)
	}
	b := u.modeHeader(six, cdb[1]&0x08 != 0, !six && cdb[1]&0x10 != 0)
	found := page == 0x3f
	for _, m := range modePages {
		if page == 0x3f || page == m[0] {
			found = true
			if control == 1 { // changeable values: none
				b = append(append(b, m[:2]...), make([]byte, len(m)-2)...)
			} else {
				b = append(b, m...)
			}
		}
	}
	if !found {
		return InvalidField(2, 5)
	}
	if six {
		b[0] = byte(len(b) - 1)
	} else {
		be.PutUint16(b, uint16(len(b)-2))
	}
	p.answer(b, allocation)
	return Sense{}
}

// modeHeader is the mode parameter header with DPOFUA (SBC-3 6.5.1) and, unless disabled, one block descriptor.
func (u *Unit) modeHeader(six, noDescriptor, longLBA bool) []byte {
	const dpofua = 0x10
	var d []byte
	switch {
	case noDescriptor:
	case longLBA:
		d = make([]byte, 16)
		be.PutUint64(d, u.blocks())
		be.PutUint32(d[12:], block.SectorSize)
	default:
		d = make([]byte, 8)
		be.PutUint32(d, uint32(min(u.blocks(), 0xffffffff)))
		be.PutUint32(d[4:], block.SectorSize)
	}
	h := []byte{0, 0, dpofua, byte(len(d))}
	if !six {
		h = []byte{0, 0, 0, dpofua, 0, 0, 0, byte(len(d))}
		if longLBA && len(d) > 0 {
			h[4] = 0x01
		}
	}
	return append(h, d...)
}

// modeSelect is MODE SELECT(6) and (10) (SPC-4 6.9, 6.10).
func modeSelect(u *Unit, cdb []byte, p *Plan) Sense {
	if cdb[1]&0x10 == 0 {
		return InvalidField(1, 4) // PF=0: vendor-specific pages
	}
	if cdb[1]&0x01 != 0 {
		return InvalidField(1, 0) // SP: saving is not supported
	}
	if cdb[0] == opModeSelect6 {
		return p.parameters(int(cdb[4]))
	}
	return p.parameters(int(be.Uint16(cdb[7:])))
}

// checkModeSelect accepts a parameter list that leaves everything as it is and refuses any other.
func (u *Unit) checkModeSelect(p *Plan, b []byte) Sense {
	header, descriptors := 4, 0
	if p.op == opModeSelect6 {
		if len(b) < header {
			return ParameterLength
		}
		descriptors = int(b[3])
	} else {
		if header = 8; len(b) < header {
			return ParameterLength
		}
		descriptors = int(be.Uint16(b[6:]))
	}
	at := header + descriptors
	if at > len(b) {
		return ParameterLength
	}
	if s := u.checkDescriptor(b[header:at], header); !s.IsZero() {
		return s
	}
	for at < len(b) {
		page := modePage(b[at] & 0x3f)
		if page == nil || b[at]&0x40 != 0 {
			return InvalidParameter(at)
		}
		if len(b)-at < 2 || len(b)-at < len(page) {
			return ParameterLength
		}
		if !bytes.Equal(page[1:], b[at+1:at+len(page)]) {
			for i := 1; i < len(page); i++ {
				if page[i] != b[at+i] {
					return InvalidParameter(at + i)
				}
			}
		}
		at += len(page)
	}
	return Sense{}
}

func modePage(code uint8) []byte {
	for _, m := range modePages {
		if m[0] == code {
			return m
		}
	}
	return nil
}

// checkDescriptor accepts no block descriptor, or one that states the block size that there is.
func (u *Unit) checkDescriptor(d []byte, at int) Sense {
	switch len(d) {
	case 0:
		return Sense{}
	case 8:
		if be.Uint32(d[4:])&0xffffff == block.SectorSize {
			return Sense{}
		}
	case 16:
		if be.Uint32(d[12:]) == block.SectorSize {
			return Sense{}
		}
	}
	return InvalidParameter(at)
}
