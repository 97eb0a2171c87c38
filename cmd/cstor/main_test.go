package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// call runs a command line and returns its exit code and what it wrote.
func call(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	cmd := root()
	var o, e bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	code = run(t.Context(), cmd, args)
	return code, o.String(), e.String()
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"version", 0, version},
		{"--version", 0, version},
		{"pool --cspi=x --namespace=y", exitUsage, "--listen is required"},
		{"target --listen=1.2.3.4", exitUsage, "--volume is required"},
		{"operator", exitUsage, "--namespace is required"},
		{"pool --nonsense", exitUsage, "unknown flag: --nonsense"},
		{"replica compare one", exitUsage, "accepts 2 arg(s)"},
		{"version --log-level=loud", exitUsage, "want debug, info, warn or error"},
		{"version --log-format=xml", exitUsage, "want text or json"},
		{"nonsense", exitUsage, "unknown command"},
		{"volume nonsense", exitUsage, "unknown command"},
		{"replica nonsense", exitUsage, "unknown command"},
		{"", 0, "Usage:"},
		{"volume", 0, "status"},
	} {
		code, out, errs := call(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("cstor %s: code %d, output %q", c.args, code, out+errs)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Short == "" || !c.HasSubCommands() && c.Name() != "version" && c.Example == "" {
				t.Errorf("%s: no help or no example", c.CommandPath())
			}
			visit(c)
		}
	}
	visit(root())
}
