// Package raid spreads rows of blocks over the devices of a group, so that up to as many of them as there are parity
// blocks in a row may be missing, fail, hang or lie while I/O goes on.
//
// # Layout
//
// A group has D data and P parity columns: stripe 1+0, mirror 1+P (copies), raidz D+1, raidz2 D+2, D a power of two. A
// row is one 4096-byte block at the same offset of each column. The group's linear space counts data blocks: block b is
// shard b%D of row b/D; shards D and up are parity. Shard s of row r is on column (s + r/64) % (D+P), at Base + r*4096.
// The first parity is the sum (exclusive or) of the data shards, the second the sum of 2^i times shard i in GF(2^8)
// modulo x^8+x^4+x^3+x^2+1. A unit is UnitBytes of each column, what one segment of the pool takes.
//
// # What it relies on
//
// Rows are written whole, and a row with live data is never written again except by this package, to repair it. So
// there is no moment at which new data stands beside old parity. Nobody reads or heals a row while it is written. The
// caller keeps what says which units are stale (Device.StaleUnits) on stable storage before it calls anything flushed
// that a device missed. The caller can tell right content from wrong: Read does not.
//
// # What it promises
//
//   - A Write that returned nil is on all columns but at most P of every unit that it touches, and where it is missing
//     the unit is stale on that device. What a device wrote since its last good flush is stale too once it goes out.
//   - After a Flush that returned nil the same holds of stable storage. When a device is taken out that cannot be spared,
//     with rows that no Flush has covered, no later Flush succeeds, and the group is Faulted.
//   - Read never gives what is on a stale unit or on a device that is out. What Recover gives has passed the caller's
//     check; only there, when everything else fails that check, stale units are tried too.
//   - No more than P wrong columns in a row, of which nobody need know which they are, make Recover and Heal fail, as
//     long as the check tells. A block is rewritten only when its right content has been proved by the check, when it
//     cannot be read at all, or by Heal when it contradicts the rest of its row: that of the only column that all others
//     contradict, else parity.
//   - A device that errs on a write or a flush, keeps failing reads, or does not answer while others have for Deadline
//     (five times that for flushes) goes out, if the group can spare it everywhere. When it cannot, the operation
//     fails with the device's error, and with a device that never answers after fifteen times Deadline. It goes out then:
//     a write that was given up is never under way in a device in use, where it may land over later ones. While too few
//     devices answer at all, none is taken out: then everything is slow. WriteInline, ReadInline and FlushInline of a
//     stripe may be kept by a device that begins to hang at that moment until it answers; it goes out as early as for
//     the others, so that all that follows fails.
//   - A caller's buffer is not touched after the call. A device that hangs may still read from buffers of the Write
//     that it missed, which is why it comes back only when it has answered everything.
//   - A column that is being replaced has two devices. Both are written; the new one is read where it is not stale and
//     the old one is gone.
//
// Requests run in goroutines of their own, one per device and operation, but for those Inline calls; memory
// is recycled, so that reads and writes allocate nothing as long as no device is missing.
package raid
