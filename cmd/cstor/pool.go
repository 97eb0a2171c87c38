package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/health"
	agent "github.com/cstor-go/cstor/internal/agent/pool"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/replica"
)

type poolFlags struct {
	instance, namespace, listen, stateDir string
	scrubEvery                            time.Duration
}

// scrubEvery is how often a pool reads everything that it holds, unless it is told otherwise.
const scrubEvery = 30 * 24 * time.Hour

func poolCommand() *cobra.Command {
	var f poolFlags
	cmd := &cobra.Command{
		Use:   "pool --cspi=NAME --namespace=NAMESPACE --listen=IP",
		Short: "Run one pool: its devices and the replicas on them",
		Long: `Runs the pool of one CStorPoolInstance on the node that has its devices. It imports the pool if the devices carry it,
also when some are missing that its raid groups can do without, and creates it only if the pool never existed and every
device is blank; a device with anything else on it is refused by name and never written to. Then it serves the pool's
replicas (CStorVolumeReplica) to their targets, gives devices that come back to the pool, replaces and adds those that
the CStorPoolInstance says, and reports capacity, health, and the progress of rebuilds and resilvers.

Needs: the API server (KUBECONFIG or a service account), read and write access to the devices. If the API server does not
answer when the process starts, and --state-dir has what an earlier process kept there, the pool is opened without it and
serves the replicas that are members of their volumes. Takes the pod's name and node from POD_NAME and NODE_NAME. Listens on port 3233 (other replicas pull from here) and 9500 (/healthz, /readyz,
/metrics) of the address given. Keeps to the least of GOMEMLIMIT,
CSTOR_MEMORY_LIMIT and its control group's limit, to 256 MiB if there is none; says at its start what that means. Ends on SIGTERM, after it has reported the pool OFFLINE and closed it.

The commands below it are for people: they look at a pool that no process runs, by its devices, and never write.`,
		Example: `  cstor pool --cspi=cspc-stripe-6qkw --namespace=openebs --listen=10.1.2.3`,
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required("cspi", f.instance, "namespace", f.namespace, "listen", f.listen); err != nil {
				return err
			}
			mem := planMemory(memoryLimits())
			if mem.soft > 0 {
				debug.SetMemoryLimit(mem.soft)
			}
			engine.Processors()
			client, err := apiServer("cstor-pool")
			if err != nil {
				return err
			}
			return runPool(cmd.Context(), client, f, mem)
		},
	}
	cmd.AddCommand(poolTools()...)
	cmd.Flags().StringVar(&f.instance, "cspi", "", "name of the CStorPoolInstance")
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "namespace of the cStor resources")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address of this pod, by which targets and other pools reach it")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "directory of the node where it is kept which devices the pool has")
	cmd.Flags().DurationVar(&f.scrubEvery, "scrub-every", scrubEvery, "how often all data is read and checked against its checksums; 0: never")
	return cmd
}

func runPool(ctx context.Context, client client.WithWatch, f poolFlags, mem memory) error {
	log := slog.Default()
	healthPort, err := listen(f.listen, cstorv1.PortMetrics)
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	server := &replicaServer{listen: f.listen, outbox: mem.outbox, log: log, fail: fail}
	a := agent.New(agent.Config{
		Client: client, Storage: &agent.Disks{Serve: server.serve, Stop: server.stop, PageCacheBytes: mem.pageCache, DeltaEntries: mem.entries},
		Namespace: f.namespace, Instance: f.instance, Node: nodeName(), Identity: podName(), Log: log,
		ScrubEvery: f.scrubEvery, StateDir: f.stateDir,
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := health.Serve(ctx, healthPort, a.Ready, a); err != nil {
			fail(err)
		}
	})
	log.Info("pool process started", "version", version, "cspi", f.instance)
	log.Info("pool process keeps to its memory", "limit", mem.limit, "source", cmp.Or(mem.source, "none is set"), "soft limit", debug.SetMemoryLimit(-1),
		"index cache", mem.pageCache, "updates", mem.entries, "outboxes", mem.outbox)
	err = a.Run(ctx)
	fail(err)
	return ended(ctx, err)
}

// ended tells the end that was asked for from one that something failed.
func ended(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && cause != context.Canceled {
		return cause
	}
	return nil
}

// replicaServer runs the replica server of a pool while that is open.
type replicaServer struct {
	listen string
	outbox int64 // see replica.Config
	log    *slog.Logger
	fail   context.CancelCauseFunc // ends the process

	cancel context.CancelFunc
	done   chan struct{}
}

func (r *replicaServer) serve(p *engine.Pool) (agent.Replicas, error) {
	ln, err := listen(r.listen, cstorv1.PortPull)
	if err != nil {
		return nil, err
	}
	s := replica.New(replica.Config{Pool: p, PullListen: ln, PullAddr: ln.Addr().String(), OutboxBytes: r.outbox, Log: r.log})
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	go func() {
		defer close(r.done)
		if err := s.Serve(ctx); err != nil {
			r.fail(fmt.Errorf("serve replicas: %w", err))
		}
	}()
	return s, nil
}

// stop ends all sessions, and returns when nothing touches the pool any more.
func (r *replicaServer) stop() {
	if r.cancel != nil {
		r.cancel()
		<-r.done
	}
}
