package scsi

import (
	"crypto/sha256"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// inquiry is INQUIRY (SPC-4 6.6).
func inquiry(u *Unit, cdb []byte, p *Plan) Sense {
	allocation := int(be.Uint16(cdb[3:]))
	if cdb[1]&0x02 != 0 {
		return InvalidField(1, 1) // CMDDT, obsolete
	}
	if cdb[1]&0x01 == 0 {
		if cdb[2] != 0 {
			return InvalidField(2, 7)
		}
		p.answer(u.standard(), allocation)
		return Sense{}
	}
	page, ok := pages[cdb[2]]
	if !ok {
		return InvalidField(2, 7)
	}
	body := page(u)
	b := append([]byte{0, cdb[2], byte(len(body) >> 8), byte(len(body))}, body...)
	p.answer(b, allocation)
	return Sense{}
}

// standard is the standard INQUIRY data (SPC-4 6.6.2).
func (u *Unit) standard() []byte {
	b := make([]byte, 96)
	b[2] = 0x06   // SPC-4
	b[3] = 0x12   // HISUP, response data format 2
	b[4] = 96 - 5 // additional length
	b[7] = 0x02   // CMDQUE
	copy(b[8:], pad(u.Vendor, 8))
	copy(b[16:], pad(u.Product, 16))
	copy(b[32:], pad(u.Revision, 4))
	for i, v := range []uint16{0x00a0, 0x0960, 0x0460, 0x04c0} { // SAM-5, iSCSI, SPC-4, SBC-3
		be.PutUint16(b[58+2*i:], v)
	}
	return b
}

// pad returns s cut or filled with spaces to n bytes, printable ASCII only (SPC-4 4.4.1).
func pad(s string, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = ' '
		if i < len(s) && s[i] > ' ' && s[i] < 0x7f {
			b[i] = s[i]
		}
	}
	return b
}

// pages are the vital product data pages, without their four-byte headers.
var pages map[uint8]func(u *Unit) []byte

func init() {
	pages = map[uint8]func(u *Unit) []byte{
		0x00: func(*Unit) []byte { return []byte{0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2} },
		0x80: func(u *Unit) []byte { return pad(u.Serial, len(u.Serial)) },
		0x83: (*Unit).identification,
		0x86: (*Unit).extended,
		0xb0: (*Unit).blockLimits,
		0xb1: (*Unit).characteristics,
		0xb2: (*Unit).provisioning,
	}
}

// identification is the Device Identification page (SPC-4 7.8.5). The NAA designator is a locally assigned one, derived
// from the serial number, so that it is the same wherever the target runs.
func (u *Unit) identification() []byte {
	naa := sha256.Sum256([]byte(u.Serial))
	naa[0] = 0x30 | naa[0]&0x0f
	b := designator(nil, 2, 0x01, append(pad(u.Vendor, 8), u.Serial...)) // T10 vendor ID, ASCII, logical unit
	b = designator(b, 1, 0x03, naa[:8])                                  // NAA, binary, logical unit
	b = designator(b, 1, 0x94, []byte{0, 0, 0, 1})                       // relative target port, iSCSI
	b = designator(b, 1, 0x95, []byte{0, 0, byte(u.PortTag >> 8), byte(u.PortTag)})
	b = designator(b, 3, 0x98, name(fmt.Sprintf("%s,t,0x%04x", u.Target, u.PortTag))) // target port name
	return designator(b, 3, 0xa8, name(u.Target))                                     // target device name
}

// designator appends a designation descriptor: protocol iSCSI, a code set, and PIV, association and type in kind.
func designator(b []byte, codeSet, kind uint8, id []byte) []byte {
	return append(append(b, 0x50|codeSet, kind, 0, byte(len(id))), id...)
}

// name is a SCSI name string: UTF-8, ended by a zero, a multiple of four bytes long.
func name(s string) []byte {
	if len(s) > 248 {
		s = s[:248]
	}
	return append([]byte(s), make([]byte, 4-len(s)%4)...)
}

// extended is the Extended INQUIRY Data page (SPC-4 7.8.7): simple task attribute only, volatile cache.
func (u *Unit) extended() []byte {
	b := make([]byte, 60)
	b[1] = 0x01 // SIMPSUP
	b[2] = 0x01 // V_SUP
	return b
}

// blockLimits is the Block Limits page (SBC-3 6.6.3).
func (u *Unit) blockLimits() []byte {
	b := make([]byte, 60) // offsets are four less than in the standard
	b[0] = 0x01           // WSNZ
	be.PutUint16(b[2:], block.Size/block.SectorSize)
	be.PutUint32(b[4:], MaxTransfer/block.SectorSize)
	be.PutUint32(b[8:], OptimalTransfer/block.SectorSize)
	be.PutUint32(b[16:], MaxUnmapBytes/block.SectorSize)
	be.PutUint32(b[20:], MaxUnmapRanges)
	be.PutUint32(b[24:], block.Size/block.SectorSize)
	be.PutUint32(b[28:], 1<<31) // UGAVALID, alignment 0
	be.PutUint64(b[32:], MaxWriteSame/block.SectorSize)
	return b
}

// characteristics is the Block Device Characteristics page (SBC-3 6.6.2): a medium that does not rotate.
func (u *Unit) characteristics() []byte {
	b := make([]byte, 60)
	be.PutUint16(b, 1)
	return b
}

// provisioning is the Logical Block Provisioning page (SBC-3 6.6.4): UNMAP and both WRITE SAME unmap, unmapped blocks
// read as zeroes, thin.
func (u *Unit) provisioning() []byte { return []byte{0, 0xe0 | 0x04, 0x02, 0} }
