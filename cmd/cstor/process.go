package main

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cstor-go/cstor/internal/agent/kube"
)

// podName is who this process is to Kubernetes: the pod, or outside of one the host.
func podName() string {
	host, _ := os.Hostname()
	return cmp.Or(os.Getenv("POD_NAME"), host)
}

// nodeName is where it runs.
func nodeName() string {
	host, _ := os.Hostname()
	return cmp.Or(os.Getenv("NODE_NAME"), host)
}

// apiServer returns a client that asks the API server each time. It does no I/O yet.
func apiServer(agent string) (client.WithWatch, error) {
	cfg, err := apiConfig(agent)
	if err != nil {
		return nil, err
	}
	return kube.NewClient(cfg)
}

// apiConfig says how to reach the API server.
func apiConfig(agent string) (*rest.Config, error) { return kube.Config(agent + "/" + version) }

// limitMemory makes the garbage collector work harder near a number of bytes, unless GOMEMLIMIT says something else.
func limitMemory(bytes int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(bytes)
	}
}

// listen listens on a port of one address.
func listen(ip string, port int) (net.Listener, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("--listen=%s: %w", ip, err)
	}
	return ln, nil
}
