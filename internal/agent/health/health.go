// Package health serves what a cluster asks of a pod over HTTP: /healthz (the process is alive), /readyz (it does its
// work) and /metrics (Prometheus text format).
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Port is where pools and targets serve it.
const Port = "9500"

// Serve answers on ln until ctx is done. ready returns nil, or why the process is not ready. The metrics are those of
// extra and of the process itself.
func Serve(ctx context.Context, ln net.Listener, ready func() error, extra ...prometheus.Collector) error {
	reg := prometheus.NewRegistry()
	for _, c := range append(extra, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	srv := &http.Server{Handler: handler(ready, reg), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("health server %s: %w", ln.Addr(), err)
	}
	return nil
}

func handler(ready func() error, reg prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}
