package noderuntime

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// followPeriod is how often a followed log is looked at.
const followPeriod = 200 * time.Millisecond

// logServer is the part of a kubelet's server that `kubectl logs` needs. Only the API server's client certificate is
// let in.
type logServer struct {
	node *node
	http *http.Server
	port int
}

func newLogServer(n *node) (*logServer, error) {
	cert, err := tls.X509KeyPair(n.rt.cfg.ServingCert, n.rt.cfg.ServingKey)
	if err != nil {
		return nil, fmt.Errorf("reading serving certificate of the nodes: %w", err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(n.rt.cfg.CA)
	l, err := net.Listen("tcp", netip.AddrPortFrom(n.cfg.Address, 0).String())
	if err != nil {
		return nil, fmt.Errorf("listening on address of node %s: %w", n.cfg.Name, err)
	}
	s := &logServer{node: n, port: l.Addr().(*net.TCPAddr).Port}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.serve)
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert},
	}
	go func() { _ = s.http.ServeTLS(l, "", "") }() // ends with close
	return s, nil
}

func (s *logServer) close() { _ = s.http.Close() }

func (s *logServer) serve(w http.ResponseWriter, r *http.Request) {
	if s.node.isOff() {
		http.Error(w, "the node is off", http.StatusServiceUnavailable)
		return
	}
	if !isAPIServer(r.TLS) {
		http.Error(w, "only the API server may read logs", http.StatusForbidden)
		return
	}
	f, err := os.Open(s.node.logPath(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")))
	if err != nil {
		http.Error(w, "the container has not been started yet", http.StatusNotFound)
		return
	}
	defer f.Close()
	q := r.URL.Query()
	if n, err := strconv.Atoi(q.Get("tailLines")); err == nil {
		if err := seekTail(f, n); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var out io.Writer = w
	if n, err := strconv.ParseInt(q.Get("limitBytes"), 10, 64); err == nil {
		_, _ = io.CopyN(out, f, n)
		return
	}
	if follow, _ := strconv.ParseBool(q.Get("follow")); !follow {
		_, _ = io.Copy(out, f) // an error here is the client's going away
		return
	}
	copyFollowing(r.Context(), w, f)
}

func isAPIServer(c *tls.ConnectionState) bool {
	return c != nil && len(c.PeerCertificates) > 0 && c.PeerCertificates[0].Subject.CommonName == "kube-apiserver-kubelet-client"
}

func copyFollowing(ctx context.Context, w http.ResponseWriter, f *os.File) {
	for {
		if _, err := io.Copy(w, f); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		if !pause(ctx, followPeriod) {
			return
		}
	}
}

// seekTail moves to where the last n lines begin.
func seekTail(f *os.File, n int) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("reading log: %w", err)
	}
	if n <= 0 {
		return nil
	}
	const chunk = 32 << 10
	lines := 0
	buf := make([]byte, chunk)
	for end := size; end > 0; {
		start := max(0, end-chunk)
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading log: %w", err)
		}
		for i := bytes.LastIndexByte(b, '\n'); i >= 0; i = bytes.LastIndexByte(b[:i], '\n') {
			if start+int64(i) == size-1 {
				continue // the end of the last line
			}
			if lines++; lines >= n {
				_, err := f.Seek(start+int64(i)+1, io.SeekStart)
				return err
			}
		}
		end = start
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
