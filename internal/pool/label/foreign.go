package label

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// signature is a magic number of somebody else's format at a fixed offset from the head of the device.
type signature struct {
	name string
	off  int
	want []byte
}

// signatures in the order of trust: the specific before the general. Offsets are those that blkid(8) uses.
var signatures = []signature{
	{"LUKS", 0, []byte("LUKS\xba\xbe")},
	{"LVM physical volume", 0, []byte("LABELONE")},
	{"LVM physical volume", 512, []byte("LABELONE")},
	{"LVM physical volume", 1024, []byte("LABELONE")},
	{"LVM physical volume", 1536, []byte("LABELONE")},
	{"xfs filesystem", 0, []byte("XFSB")},
	{"ext4 filesystem", 0x438, []byte{0x53, 0xef}},
	{"btrfs filesystem", 0x10040, []byte("_BHRfS_M")},
	{"f2fs filesystem", 1024, []byte{0x10, 0x20, 0xf5, 0xf2}},
	{"ntfs filesystem", 3, []byte("NTFS    ")},
	{"exfat filesystem", 3, []byte("EXFAT   ")},
	{"vfat filesystem", 82, []byte("FAT32   ")},
	{"vfat filesystem", 54, []byte("FAT16   ")},
	{"vfat filesystem", 54, []byte("FAT12   ")},
	{"ISO 9660 filesystem", 0x8001, []byte("CD001")},
	{"squashfs filesystem", 0, []byte("hsqs")},
	{"swap", 4086, []byte("SWAPSPACE2")},
	{"swap", 4086, []byte("SWAP-SPACE")},
	{"swap", 65526, []byte("SWAPSPACE2")},
	{"Linux RAID member", 4096, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
	{"Linux RAID member", 0, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
	{"bcache", 4096 + 24, []byte{0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81}},
	{"Ceph bluestore", 0, []byte("bluestore block device")},
	{"DRBD", 0, []byte("\x83\x74\x02\x6b")},
	{"GPT partition table", 512, []byte("EFI PART")},
	{"GPT partition table", 4096, []byte("EFI PART")},
}

// recognise names what the first and the last bytes of a device hold; "" when they are all zero.
func recognise(head, tail []byte) string {
	for _, s := range signatures {
		if s.off+len(s.want) <= len(head) && bytes.Equal(head[s.off:s.off+len(s.want)], s.want) {
			if s.name == "ext4 filesystem" && !plausibleExt(head) {
				continue
			}
			return s.name
		}
	}
	if zfs(head) || zfs(tail) {
		return "zfs_member"
	}
	for _, off := range []int{len(tail) - 512, len(tail) - 4096} { // the backup table is in the last sector
		if bytes.HasPrefix(tail[off:], []byte("EFI PART")) {
			return "GPT partition table (backup)"
		}
	}
	for _, off := range []int{len(tail) - 64<<10, len(tail) - 128<<10, len(tail) - 8<<10} { // md 0.90 and 1.0
		if off >= 0 && binary.LittleEndian.Uint32(tail[off:]) == 0xa92b4efc {
			return "Linux RAID member"
		}
	}
	if head[510] == 0x55 && head[511] == 0xaa {
		return "MBR partition table"
	}
	if at := firstNonZero(head); at >= 0 {
		return unknown("offset", at, head)
	}
	if at := firstNonZero(tail); at >= 0 {
		return unknown("offset from the last MiB", at, tail)
	}
	return ""
}

const unknownData = "unknown data"

func unknown(where string, at int, b []byte) string {
	return fmt.Sprintf(unknownData+" at %s %d: % x", where, at, b[at:min(at+16, len(b))])
}

// plausibleExt reports whether the superblock around the two magic bytes can be one of ext2, 3 or 4: block size up to
// 64 KiB and a non-zero number of inodes and blocks.
func plausibleExt(head []byte) bool {
	le := binary.LittleEndian
	return le.Uint32(head[1024+24:]) <= 6 && le.Uint32(head[1024:]) != 0 && le.Uint32(head[1024+4:]) != 0
}

// zfs reports whether one of the 256 KiB vdev labels in b carries an uberblock of either byte order.
func zfs(b []byte) bool {
	for label := 0; label+256<<10 <= len(b); label += 256 << 10 {
		for at := label + 128<<10; at < label+256<<10; at += 1024 {
			if m := binary.LittleEndian.Uint64(b[at:]); m == 0x00bab10c || m == 0x0cb1ba0000000000 {
				return true
			}
		}
	}
	return false
}

var zeroes [blockSize]byte

func firstNonZero(b []byte) int {
	from := 0
	for from+len(zeroes) <= len(b) && bytes.Equal(b[from:from+len(zeroes)], zeroes[:]) {
		from += len(zeroes)
	}
	for i, x := range b[from:] {
		if x != 0 {
			return from + i
		}
	}
	return -1
}
