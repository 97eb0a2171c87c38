package pools

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// TestTranscripts replays testdata/*.txt. Pools are called by their nodes.
//
//	node NAME...
//	bd NAME node=NODE [gib=10] [fs=TYPE] [tag=TAG|none] [state=Active] [claimed]
//	bd NAME gone | state=STATE | carried=NODE      it is removed, changes its state, or is put into another node
//	hosts                 which host claims, instances and replicas name
//	cspc [type=stripe] [tags=TAG] [existing=POOL] [disabled] [cachetype=TYPE] [compression=X] [ro=N] NODE=(BD,...,/,BD,...) [NODE.cache=(BD,...)]
//	                      creates or replaces the cluster's specification; a slash begins another raid group
//	resilvered BD         the pool's process has its data on a device that replaces another
//	up NODE...            the pool's process makes it, reports ONLINE, and is ready
//	back NODE             it reports ONLINE again, and is not known to be ready yet
//	down NODE...          it is killed
//	renew NODE            its Lease
//	volume NODE [gone]    a volume has a replica on the pool
//	destroyed NODE        the pool's process has destroyed it
//	refused               reconcile, which must change nothing but counters; prints the events alone
//	reconcile, delete, advance DURATION
//	broken [no]           the API server takes neither new pools nor changes of them
//	cache marks=hidden|shown   what the operator's cache shows of a replacement
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScene(t)
		datadriven.RunTest(t, path, s.run)
	})
}

const namespace, clusterName = "openebs", "disk"

type scene struct {
	t      *testing.T
	c      client.Client
	r      *Reconciler
	events *record.FakeRecorder
	now    time.Time
	uids   int
	broken bool // the API server takes no change of a CStorPoolInstance by the operator
	hidden bool // the operator's cache does not show annotations of claims yet
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), events: record.NewFakeRecorder(1000)}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, coordinationv1.AddToScheme, cstorv1.AddToScheme, ndmv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s.c = interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).Build(), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if _, ok := obj.(*cstorv1.CStorPoolInstance); ok && s.broken {
				return apierrors.NewInternalError(errors.New("broken"))
			}
			s.uids++
			obj.SetUID(types.UID(fmt.Sprintf("uid-%d", s.uids)))
			obj.SetCreationTimestamp(metav1.NewTime(s.now))
			return c.Create(ctx, obj, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if _, ok := obj.(*cstorv1.CStorPoolInstance); ok && s.broken {
				return apierrors.NewInternalError(errors.New("broken"))
			}
			return c.Patch(ctx, obj, patch, opts...)
		},
	})
	cached := interceptor.NewClient(s.c.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, into client.ObjectList, opts ...client.ListOption) error {
			err := c.List(ctx, into, opts...)
			if claims, ok := into.(*ndmv1.BlockDeviceClaimList); ok && s.hidden {
				for i := range claims.Items {
					claims.Items[i].Annotations = nil
				}
			}
			return err
		},
	})
	now := func() time.Time { return s.now }
	s.r = &Reconciler{
		Client: cached, Live: s.c, Image: "cstor:test", Resync: 30 * time.Second, Now: now,
	}
	s.forget()
	return s
}

// forget makes everything that was said new again.
func (s *scene) forget() {
	s.r.Events = &object.Repeater{Recorder: s.events, Log: slog.New(slog.DiscardHandler), Now: s.r.Now}
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// instance returns the pool on a node.
func (s *scene) instance(node string) *cstorv1.CStorPoolInstance {
	s.t.Helper()
	var list cstorv1.CStorPoolInstanceList
	s.must(s.c.List(context.Background(), &list))
	for i := range list.Items {
		if list.Items[i].Spec.HostName == node {
			return &list.Items[i]
		}
	}
	s.t.Fatalf("no pool on %s", node)
	return nil
}

func (s *scene) run(t *testing.T, d *datadriven.TestData) string {
	s.t = t
	ctx := context.Background()
	var words []string
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			words = append(words, a.Key)
		}
	}
	switch d.Cmd {
	case "node":
		for _, n := range words {
			s.must(s.c.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{cstorv1.LabelHostName: n}}}))
		}
	case "bd":
		s.device(d, words[0])
	case "cspc":
		s.specify(d)
	case "resilvered":
		var claims ndmv1.BlockDeviceClaimList
		s.must(s.c.List(ctx, &claims))
		for _, c := range claims.Items {
			if c.Spec.BlockDeviceName == words[0] {
				delete(c.Annotations, cstorv1.AnnotationPredecessor)
				s.must(s.c.Update(ctx, &c))
			}
		}
	case "up", "down":
		for _, n := range words {
			s.process(n, d.Cmd == "up")
		}
	case "back":
		in := s.instance(words[0])
		in.Status.Phase = cstorv1.PoolOnline
		s.must(s.c.Update(ctx, in))
		s.renew(in.Name)
	case "renew":
		s.renew(s.instance(words[0]).Name)
	case "volume":
		in := s.instance(words[0])
		r := &cstorv1.CStorVolumeReplica{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pvc-1-" + in.Name,
			Labels: map[string]string{cstorv1.LabelPoolName: in.Name}, Annotations: map[string]string{cstorv1.AnnotationPoolHost: in.Spec.HostName}}}
		r.Status.Phase = cstorv1.ReplicaHealthy
		if d.HasArg("gone") {
			s.must(s.c.Delete(ctx, r))
			in.Status.HealthyReplicas = 0
		} else {
			s.must(s.c.Create(ctx, r))
			in.Status.HealthyReplicas = 1
		}
		s.must(s.c.Update(ctx, in))
	case "destroyed":
		in := s.instance(words[0])
		controllerutil.RemoveFinalizer(in, cstorv1.FinalizerPoolProtection)
		s.must(s.c.Update(ctx, in))
	case "reconcile":
		return s.reconcile()
	case "broken":
		s.broken = !d.HasArg("no")
	case "cache":
		var marks string
		d.ScanArgs(t, "marks", &marks)
		s.hidden = marks == "hidden"
	case "refused":
		return s.refused()
	case "hosts":
		return s.hosts()
	case "delete":
		s.must(s.c.Delete(ctx, &cstorv1.CStorPoolCluster{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: clusterName}}))
	case "advance":
		a, err := time.ParseDuration(words[0])
		s.must(err)
		s.now = s.now.Add(a)
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return ""
}

func (s *scene) device(d *datadriven.TestData, name string) {
	node, fs, state, tag, gib := "", "", string(ndmv1.DeviceActive), "", int64(10)
	if !d.HasArg("node") {
		b := &ndmv1.BlockDevice{}
		s.must(s.c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, b))
		if d.HasArg("gone") {
			s.must(s.c.Delete(context.Background(), b))
			return
		}
		if d.MaybeScanArgs(s.t, "carried", &node) {
			b.Labels[cstorv1.LabelHostName], b.Spec.NodeAttributes.NodeName = node, node
		}
		d.MaybeScanArgs(s.t, "state", &state)
		b.Status.State = ndmv1.DeviceState(state)
		s.must(s.c.Update(context.Background(), b))
		return
	}
	d.ScanArgs(s.t, "node", &node)
	d.MaybeScanArgs(s.t, "gib", &gib)
	d.MaybeScanArgs(s.t, "fs", &fs)
	d.MaybeScanArgs(s.t, "state", &state)
	b := &ndmv1.BlockDevice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{cstorv1.LabelHostName: node}}}
	b.Spec.NodeAttributes.NodeName = node
	b.Spec.Path, b.Spec.Capacity.Storage, b.Spec.FileSystem.Type = "/dev/"+name, gib<<30, fs
	b.Status.ClaimState, b.Status.State = ndmv1.Unclaimed, ndmv1.DeviceState(state)
	if d.MaybeScanArgs(s.t, "tag", &tag) {
		b.Labels[ndmv1.LabelTag] = strings.TrimPrefix(tag, "none")
	}
	if d.HasArg("claimed") {
		b.Status.ClaimState = ndmv1.Claimed
	}
	s.must(s.c.Create(context.Background(), b))
}

func (s *scene) specify(d *datadriven.TestData) {
	c := &cstorv1.CStorPoolCluster{}
	err := s.c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: clusterName}, c)
	exists := err == nil
	c.Namespace, c.Name = namespace, clusterName
	c.Spec.Pools, c.Annotations = nil, map[string]string{}
	var cfg cstorv1.PoolConfig
	cfg.DataRaidGroupType = cstorv1.RaidStripe
	d.MaybeScanArgs(s.t, "type", &cfg.DataRaidGroupType)
	d.MaybeScanArgs(s.t, "cachetype", &cfg.WriteCacheGroupType)
	d.MaybeScanArgs(s.t, "compression", &cfg.Compression)
	d.MaybeScanArgs(s.t, "rebuild", &cfg.RebuildBandwidth)
	if d.HasArg("ro") {
		cfg.ROThresholdLimit = new(int)
		d.ScanArgs(s.t, "ro", cfg.ROThresholdLimit)
	}
	for _, a := range d.CmdArgs {
		node, cache := strings.CutSuffix(a.Key, ".cache")
		switch {
		case a.Key == "tags":
			c.Annotations[cstorv1.AnnotationAllowedTags] = a.Vals[0]
		case a.Key == "existing":
			c.Annotations[cstorv1.AnnotationExistingPool] = a.Vals[0]
		case a.Key == "disabled":
			c.Annotations[cstorv1.AnnotationDisable] = "true"
		case slices.Contains([]string{"type", "cachetype", "compression", "ro", "rebuild"}, a.Key):
		case cache:
			c.Spec.Pools[len(c.Spec.Pools)-1].WriteCacheRaidGroups = groups(a.Vals)
		default:
			c.Spec.Pools = append(c.Spec.Pools, cstorv1.PoolSpec{
				NodeSelector: map[string]string{cstorv1.LabelHostName: node}, DataRaidGroups: groups(a.Vals), PoolConfig: cfg})
		}
	}
	if exists {
		s.must(s.c.Update(context.Background(), c))
	} else {
		s.must(s.c.Create(context.Background(), c))
	}
}

// groups reads the names of devices, with slashes between groups.
func groups(names []string) []cstorv1.RaidGroup {
	list := []cstorv1.RaidGroup{{}}
	for _, name := range names {
		if name == "/" {
			list = append(list, cstorv1.RaidGroup{})
			continue
		}
		g := &list[len(list)-1]
		g.BlockDevices = append(g.BlockDevices, cstorv1.CStorPoolInstanceBlockDevice{BlockDeviceName: name})
	}
	return list
}

// process does what the process of a pool does when it starts, or what is seen of it when it is killed.
func (s *scene) process(node string, up bool) {
	ctx := context.Background()
	in := s.instance(node)
	d := &appsv1.Deployment{}
	s.must(s.c.Get(ctx, client.ObjectKeyFromObject(in), d))
	d.Status.ReadyReplicas = 0
	d.Status.Conditions = []appsv1.DeploymentCondition{{
		Type: appsv1.DeploymentAvailable, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(s.now)}}
	if up {
		d.Status.ReadyReplicas, d.Status.Conditions = 1, nil
		controllerutil.AddFinalizer(in, cstorv1.FinalizerPoolProtection)
		in.Status.Phase = cstorv1.PoolOnline
		s.must(s.c.Update(ctx, in))
		s.renew(in.Name)
	}
	s.must(s.c.Status().Update(ctx, d))
}

func (s *scene) renew(name string) {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	s.must(client.IgnoreNotFound(s.c.Delete(context.Background(), lease.DeepCopy())))
	lease.Spec.RenewTime, lease.Spec.LeaseDurationSeconds = ptr.To(metav1.NewMicroTime(s.now)), ptr.To[int32](40)
	s.must(s.c.Create(context.Background(), lease))
}

func (s *scene) reconcile() string {
	var out strings.Builder
	req := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: clusterName}}
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
		fmt.Fprintf(&out, "event: %q\n", <-s.events.Events)
	}
	return out.String() + s.show()
}

// refused reconciles what must be refused.
func (s *scene) refused() string {
	s.forget()
	before := s.made()
	shown := s.reconcile()
	if after := s.made(); after != before {
		s.t.Errorf("was changed from\n%sto\n%s", before, after)
	}
	var events strings.Builder
	for line := range strings.Lines(shown) {
		if strings.HasPrefix(line, "event: ") {
			events.WriteString(line)
		}
	}
	return events.String()
}

// made shows everything but the cluster itself.
func (s *scene) made() string {
	_, rest, _ := strings.Cut(s.show(), "\ncspi: ")
	return rest
}
