package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// logFlags say what is logged, and how.
type logFlags struct{ level, format string }

func (l *logFlags) register(f *pflag.FlagSet) {
	f.StringVar(&l.level, "log-level", "info", "what to log: debug, info, warn or error")
	f.StringVar(&l.format, "log-format", "text", "how to log: text or json, one line per event, to stderr")
}

// apply makes one slog.Logger the destination of everything that logs, the Kubernetes libraries included.
func (l *logFlags) apply(w io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return &exit{exitUsage, fmt.Errorf("--log-level %q: want debug, info, warn or error", l.level)}
	}
	opt := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch l.format {
	case "text":
		h = slog.NewTextHandler(w, opt)
	case "json":
		h = slog.NewJSONHandler(w, opt)
	default:
		return &exit{exitUsage, fmt.Errorf("--log-format %q: want text or json", l.format)}
	}
	log := slog.New(h)
	slog.SetDefault(log)
	ctrl.SetLogger(logr.FromSlogHandler(h))
	klog.SetSlogLogger(log)
	return nil
}
