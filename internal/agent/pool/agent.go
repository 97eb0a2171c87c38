package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/replica"
)

const (
	tick          = time.Second           // how often the engine's numbers are looked at
	floor         = 50 * time.Millisecond // between two looks, however much happens
	reread        = 30 * time.Second      // how often objects are read without a hint
	passTimeout   = 30 * time.Second      // of everything one pass asks of the API server
	statusEvery   = 2 * time.Second       // numbers of a status are written at most this often,
	rebuildEvery  = time.Second           // and those of a rebuild this often
	heartbeat     = 30 * time.Second      // a status is confirmed at least this often
	leaseEvery    = 2 * time.Second
	leaseDuration = 6 * time.Second
	goodbye       = 4 * time.Second // time to say OFFLINE before the process ends
)

// Engine is an open pool, as far as the agent needs it. Devices are named by their paths on this node.
type Engine interface {
	Stats() engine.Stats
	Names() []string // of all replicas in the pool
	Devices() []DeviceInfo
	Activity() Activity
	Replace(old block.GUID, device string) error // in the background; the old device stays in use as long as it can
	Return(device string) error                  // a device of the pool is there again
	AddGroups([]Group) error
	Expand() error // takes the room of devices that became larger
	Adopt(name, owner string) error
	SetReadOnlyPercent(int)
	Scrub(rate int64) error // begins one, or lets the one under way go on
	PauseScrub() error
	ResumeScrub() error
	StopScrub() error
	SetScrub(every time.Duration, rate int64)
	Damage() []engine.Damage
	Destroy() error // gives the devices back, blank; the pool is closed then
	Close() error
}

// Replicas serves the replicas of an open pool: the replica server.
type Replicas interface {
	Attach(replica.Spec) error
	Detach(name string)
	Known() []replica.Spec     // to be served although nobody says so, as they were served last
	Forget(name string)        // Detach, and nobody is to serve it unless told
	Destroy(name string) error // no error if there is none
	Status() []replica.Status
	SetRebuildLimit(bytesPerSec int64)              // of all together; zero: none
	Standing(name string) (replica.Standing, error) // attached or not
	Changed() <-chan struct{}
}

// Storage finds and makes pools on devices.
type Storage interface {
	// Probe says what a device carries; errors as of the engine's Probe.
	Probe(device string) (*engine.Label, error)
	// Size returns how many bytes a device has now.
	Size(device string) (int64, error)
	// Create formats blank devices; Open takes those of an existing pool, of which some may be missing. Both begin to
	// serve its replicas.
	Create(groups []Group, cfg engine.Config, set Settings) (Engine, Replicas, error)
	Open(devices []string, set Settings) (Engine, Replicas, error)
}

// Settings are what the pool's object and the process' flags say about how a pool works.
type Settings struct {
	ReadOnlyPercent int
	Compression     string        // of what is written from now on: lz4, zstd or off
	ScrubEvery      time.Duration // zero: never by itself
	Suspect         bool          // of Open: the replicas may lack what they acknowledged, which is stable before they are served
	Failed          func(error)   // is told when the pool fails, or cannot be opened; from any goroutine
	Log             *slog.Logger
}

// Config is what an Agent works with.
type Config struct {
	Client    client.WithWatch
	Storage   Storage
	Namespace string
	Instance  string // name of the CStorPoolInstance
	Node      string // the events' host
	Identity  string // holder of the lease: the pod
	Log       *slog.Logger
	Now       func() time.Time // default time.Now

	ScrubEvery time.Duration // zero: no scrub by itself
	StateDir   string        // a directory of the node that outlives the pod; empty: there is none
}

// Agent runs one pool. Run does the work; Ready and the metrics may be asked from any goroutine meanwhile.
type Agent struct {
	Config
	poolEvents, replicaEvents *kube.Recorder

	instance *cstorv1.CStorPoolInstance
	claims   map[string]*claim // by the CVR's name
	nextOpen time.Time
	backoff  kube.Backoff
	reported reported
	farewell farewell
	lease    lease
	disks    inventory
	recovery recovery
	failures failures
	known    known

	mu       sync.Mutex // guards what Ready and Collect read
	engine   Engine
	replicas Replicas
	names    map[block.GUID]string // of the BlockDevices that the pool's devices are
	why      string                // why the pool is not open
}

// New returns an agent that has not begun.
func New(cfg Config) *Agent {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	recorder := func(component string) *kube.Recorder {
		return &kube.Recorder{Client: cfg.Client, Component: component, Host: cfg.Node, Log: cfg.Log, Now: cfg.Now}
	}
	return &Agent{
		Config:        cfg,
		poolEvents:    recorder("CStorPoolInstance"),
		replicaEvents: recorder("CStorVolumeReplica"),
		claims:        map[string]*claim{},
		why:           "starting",
	}
}

// Run works until ctx is done; then it reports pool and replicas offline and closes the pool.
func (a *Agent) Run(ctx context.Context) error {
	hint := kube.NewHint()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	inNamespace := client.InNamespace(a.Namespace)
	wg.Go(func() {
		kube.Watch(ctx, a.Client, &cstorv1.CStorPoolInstanceList{}, hint, a.Log, inNamespace, client.MatchingFields{"metadata.name": a.Instance})
	})
	hint.Give()
	watching, failing := false, false
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var read time.Time
	for {
		if ctx.Err() != nil {
			return a.stop()
		}
		var changed <-chan struct{}
		if _, r := a.open(); r != nil {
			changed = r.Changed()
		}
		stale := a.Now().Sub(read) >= reread
		select {
		case <-ctx.Done():
			continue
		case <-hint:
			stale = true
		case <-changed:
		case <-ticker.C:
		}
		pass, cancel := context.WithTimeout(ctx, passTimeout)
		err := a.Pass(pass, stale || failing)
		cancel()
		a.lease.passed(a.Now())
		if err == nil && stale {
			read = a.Now()
		}
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			a.Log.Warn("cannot bring pool and API together, trying again", "err", err)
		case err == nil && failing:
			a.Log.Info("pool and API agree again")
		}
		failing = err != nil
		if errors.Is(err, errStuck) || errors.Is(err, errNotOurs) {
			return errors.Join(err, a.sayOffline())
		}
		if a.instance != nil && !watching {
			watching = true
			uid := a.instance.UID
			wg.Go(func() { a.keepLease(ctx, uid) })
			labels := client.MatchingLabels{cstorv1.LabelPoolUID: string(uid)}
			wg.Go(func() {
				kube.Watch(ctx, a.Client, &cstorv1.CStorVolumeReplicaList{}, hint, a.Log, inNamespace, labels)
			})
		}
		pause := floor
		if failing {
			pause = tick
		}
		kube.Sleep(ctx, pause)
	}
}

// Pass looks at everything once and acts. With reread it reads the objects anew; otherwise it trusts what it read last.
func (a *Agent) Pass(ctx context.Context, reread bool) error {
	a.noticeFailure()
	if a.instance == nil {
		if err := a.begin(ctx); err != nil {
			return err
		}
	} else if reread {
		if err := a.read(ctx); err != nil {
			return err
		}
	}
	var errs []error
	errs = append(errs, kube.AddFinalizer(ctx, a.Client, a.instance, cstorv1.FinalizerPoolProtection))
	eng, _ := a.open()
	errs = append(errs, a.recover(ctx, eng))
	eng, replicas := a.open()
	if eng == nil && a.recovery.closing == nil && !a.destroyed() && !a.Now().Before(a.nextOpen) {
		if err := a.openPool(ctx); err != nil {
			errs = append(errs, err)
		}
		eng, replicas = a.open()
	}
	if eng != nil {
		errs = append(errs, a.syncDevices(ctx, eng), a.syncScrub(ctx, eng), a.syncReplicas(ctx, eng, replicas), a.report(ctx, eng, replicas))
		a.remember(eng)
	}
	errs = append(errs, a.renewLease(ctx, a.instance.UID))
	if a.instance.DeletionTimestamp != nil {
		errs = append(errs, a.destroy(ctx))
	}
	return errors.Join(errs...)
}

// read gets the pool's objects.
func (a *Agent) read(ctx context.Context) error {
	instance := &cstorv1.CStorPoolInstance{}
	err := a.Client.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: a.Instance}, instance)
	switch {
	case apierrors.IsNotFound(err) && a.instance != nil:
		return nil // deleted: nothing is left to do but to be ended
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read CStorPoolInstance: %w", err)
	}
	a.instance = instance
	return a.readClaims(ctx)
}

// Ready returns nil while the pool is open and its replicas are served.
func (a *Agent) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.engine == nil {
		return errors.New(a.why)
	}
	return nil
}

func (a *Agent) open() (Engine, Replicas) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.engine, a.replicas
}

func (a *Agent) setOpen(e Engine, r Replicas, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.engine, a.replicas, a.why = e, r, why
}

// stop says goodbye to the API and closes the pool, both at once: neither waits for the other.
func (a *Agent) stop() error {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.sayOffline(); err != nil {
			a.Log.Warn("could not report the pool offline", "err", err)
		}
	})
	defer wg.Wait()
	eng, _ := a.open()
	if eng == nil {
		return nil
	}
	if err := eng.Close(); err != nil {
		a.distrust(a.failures.opening, err)
		return fmt.Errorf("close pool: %w", err)
	}
	return nil
}

func (a *Agent) sayOffline() error {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	return a.reportOffline(ctx)
}
