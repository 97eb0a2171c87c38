package pools

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// TestMemoryLimitOfPool: the process is told the limit that its container has, also when that changes.
func TestMemoryLimitOfPool(t *testing.T) {
	in := &cstorv1.CStorPoolInstance{}
	told := func(c *corev1.Container) (value string) {
		for _, e := range c.Env {
			if e.Name == cstorv1.EnvMemoryLimit {
				value += e.Value
			}
		}
		return value
	}
	limit := func(q string) {
		in.Spec.PoolConfig.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(q)}}
	}
	r := &Reconciler{}
	d := r.deployment(in)
	container := &d.Spec.Template.Spec.Containers[0]
	others := len(container.Env)
	if v := told(container); v != "" {
		t.Errorf("%s without a limit", v)
	}
	for _, c := range []struct{ limit, want string }{{"1Gi", "1073741824"}, {"128Mi", "134217728"}} {
		limit(c.limit)
		if v := told(&r.deployment(in).Spec.Template.Spec.Containers[0]); v != c.want {
			t.Errorf("%s with a limit of %s", v, c.limit)
		}
		follow(d, r.deployment(in))
		if v := told(container); v != c.want || len(container.Env) != others+1 {
			t.Errorf("%s, %d variables, after the limit became %s", v, len(container.Env), c.limit)
		}
	}
	in.Spec.PoolConfig.Resources = nil
	follow(d, r.deployment(in))
	if v := told(container); v != "" || len(container.Env) != others {
		t.Errorf("%s, %d variables, after the limit was taken away", v, len(container.Env))
	}
}
