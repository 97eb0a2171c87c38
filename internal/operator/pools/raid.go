package pools

import (
	"errors"
	"fmt"
	"slices"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// compressions are the values that upstream knows, and zstd.
var compressions = []string{"", "on", "off", "lzjb", "gzip", "zle", "lz4", "zstd"}

// raidProblem checks what an entry says about raid groups, and the rest of its configuration.
func raidProblem(entry *cstorv1.PoolSpec) error {
	cfg := &entry.PoolConfig
	switch {
	case cfg.DataRaidGroupType == "":
		return errors.New("missing dataRaidGroupType")
	case !raidType(cfg.DataRaidGroupType):
		return fmt.Errorf("unsupported dataRaidGroupType '%s' specified", cfg.DataRaidGroupType)
	case !slices.Contains(compressions, cfg.Compression):
		return fmt.Errorf("unsupported compression '%s' specified", cfg.Compression)
	}
	if l := cfg.ROThresholdLimit; l != nil && (*l < 0 || *l > 100) {
		return fmt.Errorf("roThresholdLimit %d is not between 0 and 100", *l)
	}
	if _, err := cstorv1.RebuildBandwidth(cfg.RebuildBandwidth); err != nil {
		return err
	}
	if len(entry.DataRaidGroups) == 0 {
		return errors.New("at least one raid group should be present on dataRaidGroups")
	}
	if err := groupsProblem("dataRaidGroups", cfg.DataRaidGroupType, entry.DataRaidGroups); err != nil || len(entry.WriteCacheRaidGroups) == 0 {
		return err
	}
	switch {
	case cfg.WriteCacheGroupType == "":
		return errors.New("missing writeCacheGroupType")
	case !raidType(cfg.WriteCacheGroupType):
		return fmt.Errorf("unsupported writeCacheGroupType '%s' specified", cfg.WriteCacheGroupType)
	}
	return groupsProblem("writeCacheRaidGroups", cfg.WriteCacheGroupType, entry.WriteCacheRaidGroups)
}

func raidType(kind string) bool {
	switch kind {
	case cstorv1.RaidStripe, cstorv1.RaidMirror, cstorv1.RaidZ, cstorv1.RaidZ2:
		return true
	}
	return false
}

// groupsProblem checks the number of groups of a type, and of the devices in each.
func groupsProblem(field, kind string, groups []cstorv1.RaidGroup) error {
	if kind == cstorv1.RaidStripe && len(groups) != 1 {
		return fmt.Errorf("stripe %s should have exactly one raidGroup", field)
	}
	for _, g := range groups {
		if len(g.BlockDevices) == 0 {
			return errors.New("empty raid group: number of block devices honouring raid type should be specified")
		}
		if err := countProblem(kind, len(g.BlockDevices)); err != nil {
			return err
		}
	}
	return nil
}

// countProblem checks the number of devices in a group.
func countProblem(kind string, n int) error {
	powerOfTwo := func(n, least int) bool { return n >= least && n&(n-1) == 0 }
	switch {
	case kind == cstorv1.RaidMirror && n%2 != 0:
		return fmt.Errorf("mirror raid group should have disks in multiple of 2, found %d", n)
	case kind == cstorv1.RaidZ && !powerOfTwo(n-1, 2):
		return fmt.Errorf("raidz raid group should have disks of the order 2^n+1, where n>0: 3, 5, 9 and so on, found %d", n)
	case kind == cstorv1.RaidZ2 && !powerOfTwo(n-2, 4):
		return fmt.Errorf("raidz2 raid group should have disks of the order 2^n+2, where n>1: 6, 10, 18 and so on, found %d", n)
	}
	return nil
}
