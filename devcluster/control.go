package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cstor-go/cstor/devcluster/noderuntime"
)

// controlSocket, in the cluster's directory, is where the supervisor takes orders: HTTP.
const controlSocket = "control.sock"

// controlNode is how ps shows the control plane's own processes.
const controlNode = "(control plane)"

// socketPath returns a name for the control socket that is short enough for the kernel, however long dir is; it is
// valid until release is called.
func socketPath(dir string) (path string, release func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, fmt.Errorf("no devcluster in %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), controlSocket), func() { d.Close() }, nil
}

type controlServer struct {
	http *http.Server
}

func serveControl(c *cluster) (*controlServer, error) {
	path, release, err := socketPath(c.opts.dir)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // goes with the directory
	mux := http.NewServeMux()
	mux.HandleFunc("POST /nodes/{name}/stop-node", func(w http.ResponseWriter, r *http.Request) {
		answer(w, c.runtime.StopNode(r.PathValue("name")))
	})
	mux.HandleFunc("POST /nodes/{name}/start-node", func(w http.ResponseWriter, r *http.Request) {
		answer(w, c.runtime.StartNode(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("GET /processes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(c.processes()) // an error is the client's going away
	})
	s := &controlServer{http: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
	go func() { _ = s.http.Serve(l) }() // ends with close
	return s, nil
}

func (s *controlServer) close() { _ = s.http.Close() }

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// processes lists everything that runs: the control plane's components, then the containers.
func (c *cluster) processes() []noderuntime.Process {
	out := []noderuntime.Process{}
	for _, p := range c.plane.Processes() {
		out = append(out, noderuntime.Process{Node: controlNode, Pod: p.Name, Container: p.Name, PID: p.PID})
	}
	return append(out, c.runtime.Processes()...)
}

// ask sends a request to the supervisor of the cluster in dir.
func ask(ctx context.Context, dir, method, path string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, release, err := socketPath(dir)
		if err != nil {
			return nil, err
		}
		defer release()
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://devcluster"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking the supervisor: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the supervisor in %s: %w", dir, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the supervisor's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(string(bytes.TrimSpace(body)))
	}
	return body, nil
}
