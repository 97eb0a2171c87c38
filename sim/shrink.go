package sim

import (
	"slices"
	"strings"
	"unicode"
)

// Shrink returns faults that make a run fail, as few as it finds in so many runs of it, given that those in o do. It is delta
// debugging: parts of the list are left out, larger ones first, as long as the run fails in the same way without them.
func Shrink(o Options, failed error, runs int) (only []Fault) {
	o.Trace = nil
	all := Faults(o)
	if o.Only == nil {
		for _, f := range all {
			o.Only = append(o.Only, f.Number)
		}
	}
	for size := (len(o.Only) + 1) / 2; size > 0 && runs > 0; {
		shrunk := false
		for from := 0; from < len(o.Only) && runs > 0; runs-- {
			try := o
			try.Only = slices.Delete(slices.Clone(o.Only), from, min(from+size, len(o.Only)))
			if _, err := Run(try); err != nil && way(err) == way(failed) {
				o.Only, shrunk = try.Only, true
			} else {
				from += size
			}
		}
		if size == 1 && !shrunk {
			break
		}
		size = (size + 1) / 2
	}
	for _, i := range o.Only {
		only = append(only, all[i])
	}
	return only
}

// way is what failures have in common that have the same reason: the beginning of what is said, but for numbers.
func way(err error) string {
	letters := func(r rune) rune {
		if !unicode.IsLetter(r) {
			return -1
		}
		return r
	}
	s := strings.Map(letters, err.Error())
	return s[:min(len(s), 24)]
}
