// Package raid spreads rows of blocks over the devices of a group, so that up to as many of them as there are parity
// blocks in a row may be missing, fail, hang or lie.
package raid
