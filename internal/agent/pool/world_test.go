package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/volume"
)

const (
	ns       = "openebs"
	cspi     = "cspc-6qkw"
	cspiUID  = "cspi-uid"
	pv       = "pvc-1"
	cvr      = pv + "-" + cspi
	gib      = 1 << 30
	poolSize = 10 * gib
)

// disks is a node's devices, and the pool on them.
type disks struct {
	content map[string]any // by path: an error of Probe, or a *engine.Label
	sizes   map[string]int64
	set     Settings // of the last Create or Open
	labels  []*engine.Label
	pool    *memPool // what Open finds
	created int
}

func (d *disks) Probe(path string) (*engine.Label, error) {
	switch c := d.content[path].(type) {
	case *engine.Label:
		return c, nil
	case error:
		return nil, fmt.Errorf("device %s: %w", path, c)
	}
	return nil, fmt.Errorf("device %s: no such file", path)
}

func (d *disks) Size(path string) (int64, error) {
	if d.content[path] == nil {
		return 0, fmt.Errorf("device %s: no such file", path)
	}
	return cmp.Or(d.sizes[path], poolSize), nil
}

func (d *disks) Create(groups []Group, cfg engine.Config, set Settings) (Engine, Replicas, error) {
	d.created++
	d.set = set
	d.pool = &memPool{
		disks: d, cfg: cfg, stats: engine.Stats{Allocated: 230 << 10, Free: poolSize - 230<<10, Capacity: poolSize, Health: "ONLINE"},
		replicas: map[string]*replica.Status{},
	}
	return d.pool, server{d.pool}, d.pool.AddGroups(groups)
}

func (d *disks) Open(paths []string, set Settings) (Engine, Replicas, error) {
	d.set = set
	d.pool.attached = map[string]replica.Spec{}
	missing := map[int]int{}
	for i := range d.pool.devices {
		m := &d.pool.devices[i]
		at := slices.IndexFunc(paths, func(p string) bool {
			l, ok := d.content[p].(*engine.Label)
			return ok && l.Device == m.GUID
		})
		switch {
		case at < 0:
			m.State = stateUnavailable
			missing[m.Group]++
		case m.State != stateResilvering:
			m.State = stateOnline
			fallthrough
		default:
			m.Name = paths[at]
		}
		if missing[m.Group] > redundancy[m.Kind] {
			return nil, nil, errors.New("too many devices are missing")
		}
	}
	return d.pool, server{d.pool}, nil
}

var redundancy = map[string]int{"mirror": 1, "raidz": 1, "raidz2": 2}

// memPool is a pool and its replica server.
type memPool struct {
	disks       *disks
	cfg         engine.Config
	devices     []DeviceInfo
	resilver    Progress
	scrub       Progress
	damage      []engine.Damage
	limit       int
	rebuilds    int64    // their limit, bytes/s
	calls       []string // Replace, Return, AddGroups, Expand
	refuse      error    // of these
	generation  uint64
	stats       engine.Stats
	replicas    map[string]*replica.Status
	attached    map[string]replica.Spec
	known       map[string]replica.Spec
	recorded    volume.State // by the replicas
	standingErr error
	spared      bool
	left        func() // called by Detach
	destroyErr  error
	closed      bool
	close       chan struct{} // Close waits for it
}

func (p *memPool) Stats() engine.Stats {
	p.stats.Replicas = len(p.replicas)
	return p.stats
}
func (p *memPool) Names() []string { return slices.Sorted(maps.Keys(p.replicas)) }
func (p *memPool) Close() error {
	if p.close != nil {
		<-p.close
	}
	p.closed = true
	return nil
}
func (p *memPool) Destroy() error {
	for path := range p.disks.content {
		p.disks.content[path] = engine.ErrBlank
	}
	return nil
}

func (p *memPool) Devices() []DeviceInfo   { return slices.Clone(p.devices) }
func (p *memPool) Activity() Activity      { return Activity{Scrub: p.scrub, Resilver: p.resilver} }
func (p *memPool) Damage() []engine.Damage { return p.damage }
func (p *memPool) Scrub(rate int64) error  { p.called("scrub %d", rate); return p.refuse }
func (p *memPool) PauseScrub() error       { p.called("pause"); return p.refuse }
func (p *memPool) ResumeScrub() error      { p.called("resume"); return p.refuse }
func (p *memPool) StopScrub() error        { p.called("stop"); return p.refuse }
func (p *memPool) SetScrub(every time.Duration, rate int64) {
	p.called("scrub every %s at %d", every, rate)
}
func (p *memPool) SetReadOnlyPercent(n int)  { p.limit = n }
func (p *memPool) SetRebuildLimit(n int64)   { p.rebuilds = n }
func (p *memPool) called(f string, a ...any) { p.calls = append(p.calls, fmt.Sprintf(f, a...)) }
func (p *memPool) state(path, state string)  { p.device(path).State = state }
func (p *memPool) device(path string) *DeviceInfo {
	for i := range p.devices {
		if p.devices[i].Name == path {
			return &p.devices[i]
		}
	}
	panic("no device " + path)
}

// add makes a device of the pool.
func (p *memPool) add(path, state string, like DeviceInfo) {
	like.GUID, like.Name, like.State, like.Size = block.GUID{byte(len(p.disks.labels) + 1)}, path, state, poolSize
	p.devices = append(p.devices, like)
	l := &engine.Label{Pool: block.GUID{0xaa}, Name: p.cfg.Name, Owner: p.cfg.Owner, Device: like.GUID}
	p.disks.labels = append(p.disks.labels, l)
	p.disks.content[path] = l
	p.label()
}

// label writes new labels on the devices that are there.
func (p *memPool) label() {
	var members []label.Member
	for _, m := range p.devices {
		members = append(members, label.Member{GUID: m.GUID})
	}
	p.generation++
	for _, c := range p.disks.content {
		if l, ok := c.(*engine.Label); ok && l.Owner == p.cfg.Owner && slices.ContainsFunc(members, func(m label.Member) bool { return m.GUID == l.Device }) {
			l.Generation, l.Members = p.generation, members
		}
	}
}

func (p *memPool) AddGroups(groups []Group) error {
	if p.refuse != nil {
		return p.refuse
	}
	for _, g := range groups {
		p.called("add %s %v", g.Kind, g.Devices)
		at := 0
		for _, m := range p.devices {
			at = max(at, m.Group+1)
		}
		for i, path := range g.Devices {
			p.add(path, stateOnline, DeviceInfo{Group: at, Column: i, Kind: g.Kind, Cache: g.Cache})
		}
	}
	return nil
}

func (p *memPool) Replace(old block.GUID, path string) error {
	if p.refuse != nil {
		return p.refuse
	}
	for i, m := range p.devices {
		if m.GUID == old {
			if slices.ContainsFunc(p.devices, func(o DeviceInfo) bool { return o.GUID != old && o.Group == m.Group && o.Column == m.Column }) {
				p.devices = slices.Delete(p.devices, i, i+1) // a new device that failed
			}
			p.called("replace %s with %s", m.Name, path)
			p.add(path, stateResilvering, m)
			return nil
		}
	}
	return fmt.Errorf("no device %v", old)
}

// resilvered is the end of what Replace began.
func (p *memPool) resilvered(old, fresh string) {
	p.state(fresh, stateOnline)
	p.devices = slices.DeleteFunc(p.devices, func(m DeviceInfo) bool { return m.Name == old })
	if p.disks.content[old] != nil {
		p.disks.content[old] = engine.ErrBlank
	}
	p.label()
}

func (p *memPool) Return(path string) error {
	p.called("return %s", path)
	l := p.disks.content[path].(*engine.Label)
	for i := range p.devices {
		if p.devices[i].GUID == l.Device && p.refuse == nil {
			p.devices[i].State, p.devices[i].Name = stateOnline, path
		}
	}
	return p.refuse
}

func (p *memPool) Expand() error {
	p.called("expand")
	for i := range p.devices {
		p.devices[i].Size = cmp.Or(p.disks.sizes[p.devices[i].Name], poolSize)
	}
	p.stats.Capacity += gib
	return p.refuse
}

func (p *memPool) Adopt(name, owner string) error {
	p.called("adopt as %s of %s", name, owner)
	for _, l := range p.disks.content {
		if l, ok := l.(*engine.Label); ok && p.refuse == nil && l.Owner == p.cfg.Owner {
			l.Name, l.Owner = name, owner
		}
	}
	p.cfg.Name, p.cfg.Owner = name, owner
	return p.refuse
}

func (p *memPool) Attach(s replica.Spec) error {
	if p.replicas[s.Name] == nil {
		p.replicas[s.Name] = &replica.Status{Name: s.Name, ReplicaID: s.ReplicaID, GUID: block.GUID{byte(len(p.replicas) + 1)}}
	}
	if p.attached == nil {
		p.attached = map[string]replica.Spec{}
	}
	if p.known == nil {
		p.known = map[string]replica.Spec{}
	}
	p.attached[s.Name], p.known[s.Name] = s, s
	return nil
}
func (p *memPool) Detach(name string) {
	delete(p.attached, name)
	if p.left != nil {
		p.left()
	}
}
func (p *memPool) Forget(name string) {
	p.Detach(name)
	delete(p.known, name)
}
func (p *memPool) Known() (all []replica.Spec) {
	for _, name := range slices.Sorted(maps.Keys(p.known)) {
		all = append(all, p.known[name])
	}
	return all
}
func (p *memPool) Standing(name string) (replica.Standing, error) {
	return replica.StandingOf(p.replicas[name].GUID, p.recorded, p.spared), p.standingErr
}
func (p *memPool) Changed() <-chan struct{} { return nil }
func (p *memPool) Status() (all []replica.Status) {
	for _, name := range slices.Sorted(maps.Keys(p.attached)) {
		all = append(all, *p.replicas[name])
	}
	return all
}

// server is memPool as its replica server: Destroy means a replica there, and the pool in memPool.
type server struct{ *memPool }

func (s server) Destroy(name string) error {
	if s.destroyErr != nil {
		return s.destroyErr
	}
	delete(s.attached, name)
	delete(s.replicas, name)
	return nil
}

// world is an agent between a fake pool and a fake API server.
type world struct {
	t      *testing.T
	ctx    context.Context
	client client.WithWatch
	disks  *disks
	agent  *Agent
	now    time.Time

	state   string // the node's directory
	dropped int    // devices of which what was cached was dropped
}

func newWorld(t *testing.T, phase cstorv1.PoolPhase, content any) *world {
	w := &world{t: t, ctx: t.Context(), now: time.Unix(1_800_000_000, 0), disks: &disks{content: map[string]any{"/dev/sdb": content}}}
	instance := &cstorv1.CStorPoolInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: cspi, UID: cspiUID, Labels: map[string]string{cstorv1.LabelPoolCluster: "cspc"}, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "cstor.openebs.io/v1", Kind: "CStorPoolCluster", Name: "cspc", UID: "cspc-uid",
		}}},
		Spec: cstorv1.CStorPoolInstanceSpec{
			HostName:       "node-1",
			PoolConfig:     cstorv1.PoolConfig{DataRaidGroupType: "stripe"},
			DataRaidGroups: []cstorv1.RaidGroup{{BlockDevices: []cstorv1.CStorPoolInstanceBlockDevice{{BlockDeviceName: "bd-1"}}}},
		},
		Status: cstorv1.CStorPoolInstanceStatus{Phase: phase},
	}
	bd := &openebsv1alpha1.BlockDevice{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "bd-1"},
		Spec:       openebsv1alpha1.DeviceSpec{Path: "/dev/sdb"},
	}
	w.client = fake.NewClientBuilder().WithScheme(kube.Scheme()).WithObjects(instance, bd).Build()
	w.restart()
	return w
}

// restart is a new process of the pool.
func (w *world) restart() {
	w.agent = New(Config{
		Client: w.client, Storage: w.disks, Namespace: ns, Instance: cspi, Node: "node-1", Identity: "pod", StateDir: w.state,
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
	})
}

// pass lets the agent look once, some time later.
func (w *world) pass() {
	w.t.Helper()
	w.now = w.now.Add(16 * time.Second) // longer than any back-off
	if err := w.agent.Pass(w.ctx, true); err != nil {
		w.t.Fatal(err)
	}
}

func get[T client.Object](w *world, name string, into T) T {
	w.t.Helper()
	if err := w.client.Get(w.ctx, types.NamespacedName{Namespace: ns, Name: name}, into); err != nil {
		w.t.Fatal(err)
	}
	return into
}

func (w *world) instance() *cstorv1.CStorPoolInstance {
	w.t.Helper()
	return get(w, cspi, &cstorv1.CStorPoolInstance{})
}

func (w *world) replica() *cstorv1.CStorVolumeReplica {
	w.t.Helper()
	return get(w, cvr, &cstorv1.CStorVolumeReplica{})
}

// addReplica is the operator creating a replica on this pool.
func (w *world) addReplica(phase cstorv1.ReplicaPhase) {
	w.t.Helper()
	if err := w.client.Create(w.ctx, &cstorv1.CStorVolumeReplica{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: cvr, UID: "cvr-uid", Finalizers: []string{cstorv1.FinalizerReplica},
			Labels: map[string]string{cstorv1.LabelPoolUID: cspiUID, cstorv1.LabelVolumeName: pv, cstorv1.LabelPV: pv, cstorv1.LabelPoolName: cspi},
		},
		Spec:   cstorv1.CStorVolumeReplicaSpec{TargetIP: "10.0.0.9", Capacity: "5Gi", ReplicaID: "42"},
		Status: cstorv1.CStorVolumeReplicaStatus{Phase: phase},
	}); err != nil {
		w.t.Fatal(err)
	}
}

// addVolume is the replica's volume, which knows it as a member.
func (w *world) addVolume(guid string) {
	w.t.Helper()
	cv := &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv}}
	cv.Spec.Capacity = resource.MustParse("5Gi")
	cv.Status.ReplicaDetails.KnownReplicas = map[string]string{"42": guid}
	for _, o := range []client.Object{cv, &cstorv1.CStorVolumeConfig{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv}}} {
		if err := w.client.Create(w.ctx, o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// set changes what the replica server says of the replica.
func (w *world) set(change func(*replica.Status)) { change(w.disks.pool.replicas[cvr]) }

// phases runs passes and returns the replica's phase after each change of what the server says.
func (w *world) phases(changes ...func(*replica.Status)) (phases []cstorv1.ReplicaPhase) {
	w.t.Helper()
	for _, c := range changes {
		w.set(c)
		w.pass()
		phases = append(phases, w.replica().Status.Phase)
	}
	return phases
}

func (w *world) wantEvents(parts ...string) {
	w.t.Helper()
	list := &corev1.EventList{}
	if err := w.client.List(w.ctx, list); err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, e := range list.Items {
		all = append(all, strings.Join([]string{e.Source.Component, e.Type, e.Reason, e.Message}, " "))
	}
	for _, p := range parts {
		if !slices.ContainsFunc(all, func(e string) bool { return strings.Contains(e, p) }) {
			w.t.Errorf("no event %q in %q", p, all)
		}
	}
}

var errDisk = errors.New("input/output error")
