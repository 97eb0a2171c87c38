// Package noderuntime is what a kubelet, a container runtime and the network are on a real node, with plain processes
// in the place of containers: it registers nodes, keeps their heartbeats, runs the pods bound to them as children of
// this process, and reports what becomes of them the way a kubelet does, so that the rest of the cluster cannot tell.
//
// There are no mounts, so a container sees its volumes under other names: wherever a mount path occurs in its command,
// arguments or environment, the real directory is put instead (paths.go). There are no network namespaces, so every
// pod has a loopback address of its own and must listen there (status.podIP), not on the wildcard address.
//
// The API server is the only source of truth: a node that was off carries on with what it finds there.
package noderuntime

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/cstor-go/cstor/devcluster/proc"
)

const (
	// heartbeatPeriod is how often a node renews its Lease; the controller manager's grace period is a few of them.
	heartbeatPeriod = 4 * time.Second
	// statusPeriod is how often a node repeats its unchanged status.
	statusPeriod = time.Minute
	// refreshPeriod is how often the contents of configMap, secret and token volumes are brought up to date.
	refreshPeriod = time.Minute
	// housekeepingPeriod is how often logs are measured.
	housekeepingPeriod = 10 * time.Second
	// maxLog is the size in bytes at which a container's log is cut.
	maxLog = 16 << 20
	// maxPods is the capacity of a node.
	maxPods = 110
	// runtimeVersion is shown as CONTAINER-RUNTIME of a node.
	runtimeVersion = "process://1.0.0"
)

// Config is what the runtime needs to know.
type Config struct {
	Client   kubernetes.Interface
	Launcher *proc.Launcher
	// Dir holds a directory per node: root (host paths), pods, logs.
	Dir string
	// Images maps image names to executables; see Images.resolve.
	Images Images
	// APIServer is what pods are told to connect to.
	APIServer netip.AddrPort
	// CA (PEM) is the authority of everybody in the cluster.
	CA []byte
	// ServingCert and ServingKey (PEM) are what the nodes' log servers show the API server.
	ServingCert, ServingKey []byte
	Nodes                   []NodeConfig
	// Version is the Kubernetes version that nodes report.
	Version string
	Log     *slog.Logger
}

// NodeConfig describes one node.
type NodeConfig struct {
	Name    string
	Address netip.Addr   // InternalIP, and the address of host network pods
	Pods    netip.Prefix // addresses of the other pods; contains Address
}

// Images maps image names to the executables that stand for them.
type Images map[string]string

// resolve finds the executable of an image: by its full name, or by its name without tag and digest.
func (m Images) resolve(image string) (path string, ok bool) {
	if path, ok = m[image]; ok {
		return path, true
	}
	path, ok = m[repository(image)]
	return path, ok
}

// repository is an image name without tag and digest.
func repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image
}
