package scsi

import (
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// Sense is why a command ended with CHECK CONDITION (SPC-4 4.5). The zero value is "no sense".
type Sense struct {
	Key, ASC, ASCQ uint8
	specific       uint32 // sense-key specific bytes in the low 24 bits, SKSV included; zero: none
}

// Sense keys (SPC-4 table 48).
const (
	keyMedium         = 0x3
	keyHardware       = 0x4
	keyIllegalRequest = 0x5
	keyUnitAttention  = 0x6
	keyDataProtect    = 0x7
	keyAborted        = 0xb
	keyMiscompare     = 0xe
)

// The conditions that the target reports.
var (
	InvalidOpcode       = Sense{Key: keyIllegalRequest, ASC: 0x20}
	LBAOutOfRange       = Sense{Key: keyIllegalRequest, ASC: 0x21}
	LUNotSupported      = Sense{Key: keyIllegalRequest, ASC: 0x25}
	ParameterLength     = Sense{Key: keyIllegalRequest, ASC: 0x1a}
	SavingNotSupported  = Sense{Key: keyIllegalRequest, ASC: 0x39}
	Miscompare          = Sense{Key: keyMiscompare, ASC: 0x1d}
	SpaceFailed         = Sense{Key: keyDataProtect, ASC: 0x27, ASCQ: 0x07} // SPACE ALLOCATION FAILED WRITE PROTECT
	UnrecoveredRead     = Sense{Key: keyMedium, ASC: 0x11}
	WritesLost          = Sense{Key: keyMedium, ASC: 0x11, ASCQ: 0x0c} // recommend rewrite the data; Linux repeats other medium errors
	InternalFailure     = Sense{Key: keyHardware, ASC: 0x44}
	PowerOn             = Sense{Key: keyUnitAttention, ASC: 0x29}
	DeviceReset         = Sense{Key: keyUnitAttention, ASC: 0x29, ASCQ: 0x03}
	CapacityDataChanged = Sense{Key: keyUnitAttention, ASC: 0x2a, ASCQ: 0x09}
)

// InvalidField is INVALID FIELD IN CDB with a field pointer to a byte and its most significant wrong bit.
func InvalidField(at, bit int) Sense {
	return Sense{Key: keyIllegalRequest, ASC: 0x24, specific: pointer(0xc8, at, bit)}
}

// InvalidParameter is INVALID FIELD IN PARAMETER LIST with a field pointer.
func InvalidParameter(at int) Sense {
	return Sense{Key: keyIllegalRequest, ASC: 0x26, specific: pointer(0x80, at, 0)}
}

// pointer builds the field pointer sense-key specific data (SPC-4 4.5.2.4.2): SKSV, C/D, BPV, bit, byte.
func pointer(flags, at, bit int) uint32 {
	return uint32(flags|bit)<<16 | uint32(at)&0xffff
}

// IsZero reports whether there is no sense.
func (s Sense) IsZero() bool { return s == Sense{} }

// Fixed returns fixed format sense data (SPC-4 4.5.3).
func (s Sense) Fixed() []byte { return s.AppendFixed(nil) }

// AppendFixed appends fixed format sense data to b.
func (s Sense) AppendFixed(b []byte) []byte {
	return append(b, 0x70, 0, s.Key, 0, 0, 0, 0, 10, 0, 0, 0, 0, s.ASC, s.ASCQ, 0,
		byte(s.specific>>16), byte(s.specific>>8), byte(s.specific))
}

// Descriptor returns descriptor format sense data (SPC-4 4.5.2).
func (s Sense) Descriptor() []byte {
	b := []byte{0x72, s.Key, s.ASC, s.ASCQ, 0, 0, 0, 0}
	if s.specific != 0 {
		b[7] = 8
		b = append(b, 0x02, 0x06, 0, 0, byte(s.specific>>16), byte(s.specific>>8), byte(s.specific), 0)
	}
	return b
}

// ParseSense reads fixed or descriptor format sense data.
func ParseSense(b []byte) (s Sense, ok bool) {
	switch {
	case len(b) >= 14 && b[0]&0x7e == 0x70:
		s = Sense{Key: b[2] & 0xf, ASC: b[12], ASCQ: b[13]}
		if len(b) >= 18 {
			s.specific = uint32(b[15])<<16 | uint32(b[16])<<8 | uint32(b[17])
		}
		return s, true
	case len(b) >= 4 && b[0]&0x7e == 0x72:
		return Sense{Key: b[1] & 0xf, ASC: b[2], ASCQ: b[3]}, true
	}
	return s, false
}

// UnitAttention reports whether s only tells that something happened; the command was not executed and may be sent
// again.
func (s Sense) UnitAttention() bool { return s.Key == keyUnitAttention }

// Aborted reports whether the target gave the command up without a fault of the initiator.
func (s Sense) Aborted() bool { return s.Key == keyAborted }

func (s Sense) String() string { return fmt.Sprintf("sense %x/%02x/%02x", s.Key, s.ASC, s.ASCQ) }

// Is reports whether two senses are the same condition, wherever their field pointers point.
func (s Sense) Is(t Sense) bool { return s.Key == t.Key && s.ASC == t.ASC && s.ASCQ == t.ASCQ }

// FromError says how a device's error ends a command.
func FromError(err error) (Status, Sense) {
	switch {
	case err == nil:
		return Good, Sense{}
	case errors.Is(err, block.ErrRetry):
		return Busy, Sense{}
	case errors.Is(err, block.ErrNoSpace):
		return CheckCondition, SpaceFailed
	case errors.Is(err, block.ErrLost):
		return CheckCondition, WritesLost
	case errors.Is(err, block.ErrMedium):
		return CheckCondition, UnrecoveredRead
	}
	return CheckCondition, InternalFailure
}
