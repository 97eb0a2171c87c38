package api_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	// Imported so that a change of the types makes a cached test result stale.
	_ "github.com/cstor-go/cstor/api/cstor/v1"
	_ "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// TestGenerated checks that `go generate ./api` has been run after the last change of the types.
func TestGenerated(t *testing.T) {
	for _, pkg := range []string{"cstor/v1", "openebs/v1alpha1"} {
		fresh := t.TempDir()
		generate(t, "object", "paths=./"+pkg, "output:object:dir="+fresh)
		compare(t, fresh, pkg, "zz_generated.deepcopy.go")
	}

	fresh, committed := t.TempDir(), "../deploy/crds"
	generate(t, "crd:crdVersions=v1", "paths=./...", "output:crd:dir="+fresh)
	names := map[string]bool{}
	for _, dir := range []string{fresh, committed} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	kustomization, err := os.ReadFile("../deploy/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name := range names {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		compare(t, fresh, committed, name)
		if !bytes.Contains(kustomization, []byte("- crds/"+name+"\n")) {
			t.Errorf("deploy/kustomization.yaml does not list crds/%s", name)
		}
	}
}

func generate(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"tool", "controller-gen"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func compare(t *testing.T, fresh, committed, name string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(fresh, name))
	if err != nil {
		t.Errorf("%s in %s is of no type any more: delete it", name, committed)
		return
	}
	got, err := os.ReadFile(filepath.Join(committed, name))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s in %s is not current: run `go generate ./api`", name, committed)
	}
}
