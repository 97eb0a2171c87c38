package pools

import (
	"maps"
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
	const every, rate = cstorv1.AnnotationScrubEvery, cstorv1.AnnotationScrubRate
	in.Annotations = map[string]string{rate: "5M"}
	for _, c := range []struct {
		what          string
		cluster, pool map[string]string
		every, rate   string
	}{
		{"the cluster's comes", map[string]string{every: "24h", cstorv1.AnnotationScrub: "start"}, nil, "24h", "5M"},
		{"it changes", map[string]string{every: "48h"}, nil, "48h", "5M"},
		{"the pool's is not what counts", map[string]string{every: "48h"}, map[string]string{every: "1h"}, "48h", "5M"},
		{"the cluster's goes", nil, nil, "", "5M"},
		{"the rate is the cluster's", map[string]string{rate: "7M"}, nil, "", "7M"},
		{"the cluster's goes when the pool has another one", nil, map[string]string{rate: "9M"}, "", "9M"},
		{"which stays", nil, nil, "", "9M"},
	} {
		w.cluster.Annotations = c.cluster
		maps.Copy(in.Annotations, c.pool)
		w.configure(in, &cstorv1.PoolSpec{})
		if in.Annotations[every] != c.every || in.Annotations[rate] != c.rate || in.Annotations[cstorv1.AnnotationScrub] != "" {
			t.Errorf("%s: %v", c.what, in.Annotations)
		}
	}
	if len(in.Annotations) != 1 {
		t.Error(in.Annotations)
	}
}
