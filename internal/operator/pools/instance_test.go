package pools

import (
	"testing"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// TestScrubSettings: those of the cluster are those of its pools; a pool may have its own where the cluster has none.
func TestScrubSettings(t *testing.T) {
	w := &world{cluster: &cstorv1.CStorPoolCluster{}}
	in := &cstorv1.CStorPoolInstance{}
	w.configure(in, &cstorv1.PoolSpec{})
	if len(in.Annotations) != 0 {
		t.Error(in.Annotations)
	}
	in.Annotations = map[string]string{cstorv1.AnnotationScrubRate: "5M"}
	w.cluster.Annotations = map[string]string{cstorv1.AnnotationScrubEvery: "24h", cstorv1.AnnotationScrub: "start"}
	w.configure(in, &cstorv1.PoolSpec{})
	if len(in.Annotations) != 2 || in.Annotations[cstorv1.AnnotationScrubEvery] != "24h" || in.Annotations[cstorv1.AnnotationScrubRate] != "5M" {
		t.Error(in.Annotations)
	}
}
