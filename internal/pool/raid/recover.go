package raid

// Recover obtains len(b) bytes at off for which ok holds: see the package documentation.
func (g *Group) Recover(b []byte, off int64, ok func([]byte) bool) error {
	if err := g.Read(b, off); err != nil {
		return err
	}
	if ok(b) {
		return nil
	}
	return ErrUnrecoverable
}

// RecoverBlocks is Recover for a range whose blocks can be checked one by one: bad returns the indexes of those that
// are known to be wrong.
func (g *Group) RecoverBlocks(b []byte, off int64, bad func([]byte) []int) error {
	return g.Recover(b, off, func(b []byte) bool { return len(bad(b)) == 0 })
}

// HealResult is what Heal found and did.
type HealResult struct {
	Rewritten int   // blocks written to devices
	Wrong     int   // blocks that a device read back other than they should be
	Lost      []int // indexes of data blocks that no copy and no parity gives
}

// Heal makes the rows from off on, n bytes of data, right on all devices.
func (g *Group) Heal(off, n int64, check func(data []byte) (bad []int)) (HealResult, error) {
	return HealResult{}, ErrUnrecoverable
}

// Settle is Heal for rows that a crash may have left half written.
func (g *Group) Settle(off, n int64, check func(data []byte) (bad []int)) (HealResult, error) {
	return g.Heal(off, n, check)
}
