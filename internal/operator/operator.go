// Package operator runs the controllers: pools (CStorPoolCluster) and volumes (CStorVolumeConfig), in one process.
//
// It relies on a Kubernetes API server alone. It never touches a block of data: what it wants it writes into resources,
// what has become true it reads from them. It can be killed at any moment; the next one goes on from the resources.
package operator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/operator/object"
	"github.com/cstor-go/cstor/internal/operator/pools"
	"github.com/cstor-go/cstor/internal/operator/volumes"
)

// debug is how much lower the libraries' reports are logged than they mean them: as slog's debug level. Errors stay errors.
const debug = 4

// leaseName is the Lease by which one of several operators is chosen.
const leaseName = "cstor-operator-leader"

// Options says what an operator works on.
type Options struct {
	Namespace   string       // of all resources
	Image       string       // of the pools and targets that it makes
	KubeConfig  *rest.Config // of the API server
	LeaderElect bool         // when there may be more than one operator
	MetricsAddr string       // host:port of /metrics, /healthz and /readyz; empty: none
	Log         *slog.Logger
	Resync      time.Duration // at least this often everything is looked at; default 30 s
}

// Scheme knows the kinds that the operator works with.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, cstorv1.AddToScheme, ndmv1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // two types of one kind: a mistake in this program
		}
	}
	return s
}

// Run works until ctx is done, or returns why it cannot.
func Run(ctx context.Context, o Options) error {
	if o.Namespace == "" || o.Image == "" {
		return fmt.Errorf("operator: namespace and image are needed")
	}
	resync := cmp.Or(o.Resync, 30*time.Second)
	log := logr.FromSlogHandler(o.Log.Handler()).V(debug) // what it does is told by our events
	ctrl.SetLogger(log)
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mgr, err := ctrl.NewManager(o.KubeConfig, ctrl.Options{
		Scheme: Scheme(),
		Logger: log,
		Cache:  cache.Options{DefaultNamespaces: map[string]cache.Config{o.Namespace: {}}},
		Metrics: metricsserver.Options{
			BindAddress:   cmp.Or(o.MetricsAddr, "0"),
			ExtraHandlers: map[string]http.Handler{"/healthz": ok, "/readyz": ok},
		},
		LeaderElection:                o.LeaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	// Events of the core API: with them, and with a source, `kubectl describe` counts what is repeated.
	events := func(source string) *object.Repeater {
		return &object.Repeater{Recorder: mgr.GetEventRecorderFor(source), Log: o.Log, Now: time.Now} //nolint:staticcheck
	}
	for _, c := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&pools.Reconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: events(pools.EventSource),
			Image: o.Image, Resync: resync, Now: time.Now,
		},
		&volumes.Reconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: events(volumes.EventSource),
			Image: o.Image, Resync: resync, Now: time.Now,
		},
	} {
		if err := c.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("operator: %w", err)
		}
	}
	o.Log.Info("operator starts", "namespace", o.Namespace, "image", o.Image, "resync", resync)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	return nil
}
