package object

import (
	"hash/fnv"
	"strings"

	"k8s.io/apimachinery/pkg/util/rand"
)

// letters is the size of the alphabet of generated names.
const letters = 27

// Suffix returns n characters that look like those of generated names and follow from what: the same again after a
// restart.
func Suffix(n int, what ...string) string {
	h := fnv.New64a()
	h.Write([]byte(strings.Join(what, "\x00")))
	code := make([]byte, n)
	for i, sum := 0, h.Sum64(); i < n; i, sum = i+1, sum/letters {
		code[i] = byte(sum % letters)
	}
	return rand.SafeEncodeString(string(code))
}
