package volumes

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// TestTranscripts replays testdata/*.txt: what users, pools and targets do, and what the controller makes of it.
//
//	new replicas=2 [pinned=(a,b)] [affinity=HOST]  a CStorVolumeConfig as the CSI driver makes it
//	pool NAME [phase=ONLINE] [free=10G] [host=NAME] [cluster=disk] [readonly] [gone]
//	edit NAME...              spec.policy.replicaPoolInfo
//	reconcile                 until nothing changes any more; prints events and objects
//	step                      decides once; prints what would be done
//	found                     the target founds the volume with all replicas that exist, which become Healthy
//	target adopt|promote NAME|remove
//	target forget NAME        the target knows the member by its GUID only; its replica's object tells that: guid NAME
//	target epoch N            another target serves, or somebody brings the status of an earlier one back
//	process ready|dead        the pod of the target
//	replica NAME PHASE [per cent]
//	destroyed NAME            the pool has destroyed the replica's data
//	delete                    the CStorVolumeConfig
//	advance DURATION
//	annotate VOLUME           somebody lets the annotation name another volume
//	publish                   the Service is as an earlier release made it: it leads to targets that are not ready
//	restart                   of the operator
//	fail NTH                  the NTH write from now on fails, once
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScene(t)
		datadriven.RunTest(t, path, s.run)
	})
}

const namespace, volumeName = "openebs", "pvc-1"

// scene is a cluster of fakes.
type scene struct {
	t      *testing.T
	c      client.Client
	r      *Reconciler
	events *record.FakeRecorder
	now    time.Time
	uids   int
	fail   int // writes until one fails; 0: none does
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, cstorv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s.c = interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).Build(), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if err := s.mayFail(); err != nil {
				return err
			}
			s.uids++
			obj.SetUID(types.UID(fmt.Sprintf("uid-%d", s.uids)))
			obj.SetCreationTimestamp(metav1.NewTime(s.now))
			switch obj := obj.(type) {
			case *corev1.Service:
				obj.Spec.ClusterIP = "10.96.0.10"
			case *appsv1.Deployment:
				obj.Status.ReadyReplicas = 1
			}
			return c.Create(ctx, obj, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if err := s.mayFail(); err != nil {
				return err
			}
			return c.Patch(ctx, obj, patch, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			if err := s.mayFail(); err != nil {
				return err
			}
			return c.Delete(ctx, obj, opts...)
		},
	})
	s.restart()
	return s
}

func (s *scene) mayFail() error {
	if s.fail > 0 {
		if s.fail--; s.fail == 0 {
			return fmt.Errorf("injected failure")
		}
	}
	return nil
}

func (s *scene) restart() {
	s.events = record.NewFakeRecorder(1000)
	now := func() time.Time { return s.now }
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s.r = &Reconciler{
		Client: s.c, Live: s.c, Image: "cstor:test", Resync: 30 * time.Second, Now: now,
		Events: &object.Repeater{Recorder: s.events, Log: log, Now: now},
	}
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) get(name string, obj client.Object) client.Object {
	s.t.Helper()
	s.must(s.c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, obj))
	return obj
}

func (s *scene) config() *cstorv1.CStorVolumeConfig {
	return s.get(volumeName, &cstorv1.CStorVolumeConfig{}).(*cstorv1.CStorVolumeConfig)
}

func (s *scene) volume() *cstorv1.CStorVolume {
	return s.get(volumeName, &cstorv1.CStorVolume{}).(*cstorv1.CStorVolume)
}

func (s *scene) replica(pool string) *cstorv1.CStorVolumeReplica {
	return s.get(cstorv1.ReplicaName(volumeName, pool), &cstorv1.CStorVolumeReplica{}).(*cstorv1.CStorVolumeReplica)
}

func (s *scene) update(obj client.Object) {
	s.t.Helper()
	s.must(s.c.Update(context.Background(), obj))
}

func (s *scene) run(t *testing.T, d *datadriven.TestData) string {
	s.t = t
	var names []string
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			names = append(names, a.Key)
		}
	}
	switch d.Cmd {
	case "new":
		s.create(d)
	case "pool":
		s.pool(d, names[0])
	case "edit":
		c := s.config()
		c.Spec.Policy.ReplicaPoolInfo = nil
		for _, n := range names {
			c.Spec.Policy.ReplicaPoolInfo = append(c.Spec.Policy.ReplicaPoolInfo, cstorv1.ReplicaPoolInfo{PoolName: n})
		}
		s.update(c)
	case "reconcile":
		return s.reconcile()
	case "step":
		w, err := s.r.gather(context.Background(), s.config())
		s.must(err)
		n := w.next()
		return strings.TrimSpace(fmt.Sprintf("%s factor=%d pools=%v %s %s", n.do, n.factor, n.pools, n.reason, n.message)) + "\n"
	case "found", "target":
		s.target(d.Cmd, names)
	case "process":
		s.process(names[0] == "ready")
	case "replica":
		r := s.replica(names[0])
		r.Status.Phase, r.Status.Progress = cstorv1.ReplicaPhase(names[1]), nil
		if len(names) > 2 {
			var done int64
			fmt.Sscan(names[2], &done)
			r.Status.Progress = cstorv1.NewRebuildProgress(done<<20, 100<<20, 1<<20, "")
		}
		s.update(r)
	case "guid":
		r := s.replica(names[0])
		r.Status.GUID = "guid-" + names[0]
		s.update(r)
	case "destroyed":
		r := s.replica(names[0])
		r.Finalizers = nil
		s.update(r)
	case "delete":
		if len(names) > 0 {
			s.must(s.c.Delete(context.Background(), s.replica(names[0])))
			break
		}
		s.must(s.c.Delete(context.Background(), s.config()))
	case "advance":
		d, err := time.ParseDuration(names[0])
		s.must(err)
		s.now = s.now.Add(d)
	case "annotate":
		c := s.config()
		c.Annotations[cstorv1.AnnotationVolumeID] = names[0]
		s.update(c)
	case "publish":
		service := s.get(volumeName, &corev1.Service{}).(*corev1.Service)
		service.Spec.PublishNotReadyAddresses = true
		s.must(s.c.Update(context.Background(), service))
	case "restart":
		s.restart()
	case "fail":
		fmt.Sscan(names[0], &s.fail)
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return ""
}

func (s *scene) create(d *datadriven.TestData) {
	var replicas int
	var affinity string
	var pinned []string
	d.MaybeScanArgs(s.t, "replicas", &replicas)
	d.MaybeScanArgs(s.t, "affinity", &affinity)
	for _, a := range d.CmdArgs {
		if a.Key == "pinned" {
			pinned = a.Vals
		}
	}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")}
	c := &cstorv1.CStorVolumeConfig{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: volumeName,
			Labels:      map[string]string{cstorv1.LabelPoolCluster: "disk"},
			Annotations: map[string]string{cstorv1.AnnotationVolumeID: volumeName, cstorv1.AnnotationVolumePolicy: "", cstorv1.LabelPVC: "claim"},
			Finalizers:  []string{cstorv1.FinalizerVolumeConfig},
		},
		Spec: cstorv1.CStorVolumeConfigSpec{
			Capacity: size, Provision: cstorv1.VolumeProvision{Capacity: size, ReplicaCount: replicas}},
		Status: cstorv1.CStorVolumeConfigStatus{Phase: cstorv1.ConfigPending},
	}
	c.VersionDetails.Status.DependentsUpgraded = true
	if affinity != "" {
		c.Spec.Policy.Provision.ReplicaAffinity, c.Publish.NodeID = true, affinity
	}
	for _, p := range pinned {
		c.Spec.Policy.ReplicaPoolInfo = append(c.Spec.Policy.ReplicaPoolInfo, cstorv1.ReplicaPoolInfo{PoolName: p})
	}
	s.must(s.c.Create(context.Background(), c))
}

func (s *scene) pool(d *datadriven.TestData, name string) {
	phase, free, host, cluster := "ONLINE", "10G", "node-"+name, "disk"
	d.MaybeScanArgs(s.t, "phase", &phase)
	d.MaybeScanArgs(s.t, "free", &free)
	d.MaybeScanArgs(s.t, "host", &host)
	d.MaybeScanArgs(s.t, "cluster", &cluster)
	p := &cstorv1.CStorPoolInstance{}
	err := s.c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, p)
	exists := err == nil
	p.Namespace, p.Name = namespace, name
	p.Labels = map[string]string{cstorv1.LabelPoolCluster: cluster}
	p.Spec.HostName = host
	p.Status.Phase = cstorv1.PoolPhase(phase)
	p.Status.Capacity.Free = resource.MustParse(free)
	p.Status.ReadOnly = d.HasArg("readonly")
	switch {
	case exists && d.HasArg("gone"):
		s.must(s.c.Delete(context.Background(), p))
	case exists:
		s.update(p)
	default:
		s.must(s.c.Create(context.Background(), p))
	}
}

// target does what the target's process does, as far as the resources show it.
func (s *scene) target(cmd string, args []string) {
	v := s.volume()
	known, wanted := v.Status.ReplicaDetails.KnownReplicas, v.Spec.ReplicaDetails.KnownReplicas
	if known == nil {
		known, wanted = map[string]string{}, map[string]string{}
	}
	promote := func(r *cstorv1.CStorVolumeReplica) {
		known[r.Spec.ReplicaID], wanted[r.Spec.ReplicaID] = "guid-"+r.PoolOf(), "guid-"+r.PoolOf()
		r.Status.Phase, r.Status.Progress = cstorv1.ReplicaHealthy, nil
		s.update(r)
	}
	switch {
	case cmd == "found":
		var list cstorv1.CStorVolumeReplicaList
		s.must(s.c.List(context.Background(), &list))
		for i := range list.Items {
			promote(&list.Items[i])
		}
		v.Status.Phase = cstorv1.VolumeHealthy
		v.Status.Epoch = 1
		v.Status.DesiredReplicationFactor = v.Spec.DesiredReplicationFactor
	case args[0] == "adopt":
		v.Status.DesiredReplicationFactor = v.Spec.DesiredReplicationFactor
	case args[0] == "epoch":
		v.Status.Generation = 0
		fmt.Sscan(args[1], &v.Status.Epoch)
	case args[0] == "forget":
		for id, g := range known {
			if g == "guid-"+args[1] {
				delete(known, id)
				delete(wanted, id)
				known[g], wanted[g] = g, g
			}
		}
	case args[0] == "promote":
		v.Status.Generation++
		promote(s.replica(args[1]))
	case args[0] == "remove":
		v.Status.Generation++
		for id := range known {
			if _, stays := wanted[id]; !stays && len(known) > v.Spec.DesiredReplicationFactor {
				delete(known, id)
			}
		}
	}
	v.Status.ReplicaDetails.KnownReplicas, v.Spec.ReplicaDetails.KnownReplicas = known, wanted
	v.Spec.ReplicationFactor, v.Spec.ConsistencyFactor = len(known), cstorv1.ConsistencyFactor(len(known))
	s.update(v)
}

// process makes the target's Deployment have a ready pod, or none from now on.
func (s *scene) process(ready bool) {
	d := s.get(cstorv1.TargetDeployment(volumeName), &appsv1.Deployment{}).(*appsv1.Deployment)
	d.Status.ReadyReplicas = 0
	d.Status.Conditions = []appsv1.DeploymentCondition{{
		Type: appsv1.DeploymentAvailable, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(s.now)}}
	if ready {
		d.Status.ReadyReplicas, d.Status.Conditions = 1, nil
	}
	s.must(s.c.Status().Update(context.Background(), d))
}

// reconcile reconciles until the objects stay the same, as watches would make it, and prints what has happened and what
// there is now.
func (s *scene) reconcile() string {
	var out strings.Builder
	req := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: volumeName}}
	for before := ""; ; {
		if _, err := s.r.Reconcile(context.Background(), req); err != nil {
			fmt.Fprintf(&out, "error: %v\n", err)
			break
		}
		after := s.show()
		if after == before {
			break
		}
		before = after
	}
	for len(s.events.Events) > 0 {
		fmt.Fprintf(&out, "event: %s\n", <-s.events.Events)
	}
	return out.String() + s.show()
}

func (s *scene) show() string {
	var out strings.Builder
	ctx, here := context.Background(), client.InNamespace(namespace)
	var configs cstorv1.CStorVolumeConfigList
	s.must(s.c.List(ctx, &configs, here))
	for _, c := range configs.Items {
		fmt.Fprintf(&out, "cvc: %s%s %v pools=%v", c.Status.Phase, leaving(&c), names(c.Spec.Policy.ReplicaPoolInfo), c.Status.PoolInfo)
		if l := c.Labels[cstorv1.LabelPDB]; l != "" {
			fmt.Fprintf(&out, " pdb=%s", l)
		}
		fmt.Fprintln(&out)
		for _, k := range c.Status.Conditions {
			fmt.Fprintf(&out, "  %s/%s: %s\n", k.Type, k.Reason, k.Message)
		}
	}
	var volumes cstorv1.CStorVolumeList
	s.must(s.c.List(ctx, &volumes, here))
	for _, v := range volumes.Items {
		fmt.Fprintf(&out, "cv: %s factor=%d/%d RF=%d CF=%d wanted=%v members=%v\n", v.Status.Phase, v.Spec.DesiredReplicationFactor,
			v.Status.DesiredReplicationFactor, v.Spec.ReplicationFactor, v.Spec.ConsistencyFactor,
			guids(v.Spec.ReplicaDetails), guids(v.Status.ReplicaDetails))
	}
	var replicas cstorv1.CStorVolumeReplicaList
	s.must(s.c.List(ctx, &replicas, here))
	for _, r := range replicas.Items {
		fmt.Fprintf(&out, "cvr: %s %q%s\n", r.PoolOf(), r.Status.Phase, leaving(&r))
	}
	var deployments appsv1.DeploymentList
	s.must(s.c.List(ctx, &deployments, here))
	for _, d := range deployments.Items {
		fmt.Fprintf(&out, "deployment: %s\n", d.Name)
	}
	var services corev1.ServiceList
	s.must(s.c.List(ctx, &services, here))
	for _, d := range services.Items {
		fmt.Fprintf(&out, "service: %s\n", d.Name)
		if d.Spec.PublishNotReadyAddresses {
			fmt.Fprintln(&out, "  leads to targets that stand down or end")
		}
	}
	var budgets policyv1.PodDisruptionBudgetList
	s.must(s.c.List(ctx, &budgets, here))
	for _, b := range budgets.Items {
		fmt.Fprintf(&out, "pdb: %s %v\n", b.Name, b.Spec.Selector.MatchExpressions[0].Values)
	}
	return out.String()
}

func leaving(obj client.Object) string {
	if obj.GetDeletionTimestamp() != nil {
		return " (being deleted)"
	}
	return ""
}

func guids(d cstorv1.CStorVolumeReplicaDetails) (out []string) {
	for _, g := range d.KnownReplicas {
		out = append(out, strings.TrimPrefix(g, "guid-"))
	}
	slices.Sort(out)
	return out
}
