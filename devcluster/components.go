package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	componentversion "k8s.io/component-base/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// components are the programs this executable contains besides itself.
var components = map[string]func() *cobra.Command{
	"etcd":                    etcdCommand,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 kubectlCommand,
}

// componentHelp lists them in the help text.
var componentHelp = map[string]string{
	"etcd":                    "Run etcd",
	"kube-apiserver":          "Run kube-apiserver",
	"kube-controller-manager": "Run kube-controller-manager",
	"kube-scheduler":          "Run kube-scheduler",
	"kubectl":                 "Run kubectl",
}

// version is the Kubernetes version, set through the linker (see build.sh).
func version() string { return componentversion.Get().GitVersion }

// kubectlCommand is kubectl, but what it caches about a devcluster is kept in that cluster's directory and goes with it,
// and without a home directory it does not litter the working directory.
func kubectlCommand() *cobra.Command {
	const cacheDir = "KUBECACHEDIR"
	if os.Getenv(cacheDir) == "" {
		dir := filepath.Dir(os.Getenv("KUBECONFIG"))
		if _, err := os.Stat(filepath.Join(dir, pidFile)); err == nil {
			_ = os.Setenv(cacheDir, filepath.Join(dir, "kubectl-cache"))
		} else if os.Getenv("HOME") == "" {
			_ = os.Setenv(cacheDir, filepath.Join(os.TempDir(), fmt.Sprintf("devcluster-kubectl-%d", os.Getuid())))
		}
	}
	return kubectl.NewDefaultKubectlCommand()
}

// etcdCommand runs etcd for as long as the process lives.
func etcdCommand() *cobra.Command {
	var dataDir, clientURL string
	c := &cobra.Command{
		Use:   "etcd",
		Short: "Run a single etcd member without fsync",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			client, err := url.Parse(clientURL)
			if err != nil {
				return fmt.Errorf("--listen-client-url: %w", err)
			}
			return runEtcd(dataDir, *client)
		},
	}
	c.Flags().StringVar(&dataDir, "data-dir", "", "directory of the data")
	c.Flags().StringVar(&clientURL, "listen-client-url", "", "URL to serve clients at")
	return c
}

func runEtcd(dataDir string, client url.URL) error {
	cfg := embed.NewConfig()
	cfg.Dir = dataDir
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
	// A single member has no peers, but etcd wants a place to expect them: any free port of the same address.
	peer := url.URL{Scheme: "http", Host: client.Hostname() + ":0"}
	cfg.ListenPeerUrls = []url.URL{peer}
	cfg.AdvertisePeerUrls = []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel = "warn"
	cfg.UnsafeNoFsync = true // the data does not outlive the cluster
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	defer e.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	select {
	case <-stop:
		return nil
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	}
}
