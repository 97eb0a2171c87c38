package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cstor-go/cstor/"

// layers says which of our packages each part may import, test files aside; a name covers what is below it. Parts that
// are not listed may import everything (wiring, tools), but nobody imports them.
var layers = map[string][]string{
	"api":                   {"api"},
	"internal/block":        {},
	"internal/volume":       {"internal/block"},
	"internal/wire":         {"internal/block", "internal/volume"},
	"internal/pool":         {"internal/block", "internal/pool"},
	"internal/replica":      {"internal/block", "internal/volume", "internal/wire", "internal/pool"},
	"internal/target":       {"internal/block", "internal/volume", "internal/wire"},
	"internal/iscsi":        {"internal/block", "internal/iscsi"},
	"internal/initiator":    {"internal/block", "internal/iscsi"},
	"internal/operator":     {"api", "internal/operator"},
	"internal/agent/kube":   {"api"},
	"internal/agent/health": {},
	"internal/agent/pool":   {"api", "internal/agent/kube", "internal/block", "internal/pool", "internal/replica"},
	"internal/agent/target": {"api", "internal/agent/kube", "internal/block", "internal/volume"},
	"internal/cli":          {"api", "internal/pool"},
}

// dataPlane never talks to Kubernetes: what it needs from there it names as an interface.
var dataPlane = []string{
	"internal/block", "internal/volume", "internal/wire", "internal/pool", "internal/replica", "internal/target", "internal/iscsi", "internal/initiator",
}

// pure is without clocks, goroutines, sockets and disks.
const pure = "internal/volume"

var impure = []string{"context", "net", "os", "sync", "syscall", "math/rand", "math/rand/v2", "crypto/rand"}

// harness are the folders that test, measure or show the product: they are not part of it.
var harness = []string{"devcluster", "demo", "test", "bench", "sim", "bin", "docs", "internal/harness"}

// source is a Go file of the module that is not a test.
type source struct {
	path, dir string // slash-separated, relative to the module
	file      *ast.File
	text      string
	set       *token.FileSet
}

func sources(t *testing.T) (all []source) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" || slices.Contains(harness, rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, rel, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, source{path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), file: f, text: string(text), set: set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found only %d files below %s", len(all), root)
	}
	return all
}

// within reports whether pkg is one of the parts or below one.
func within(pkg string, parts []string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") })
}

// layerOf returns the most specific part that a package belongs to.
func layerOf(pkg string) (part string, ok bool) {
	for p := range layers {
		if within(pkg, []string{p}) && len(p) > len(part) {
			part = p
		}
	}
	return part, part != ""
}

func TestImportsPointDownwards(t *testing.T) {
	for _, s := range sources(t) {
		part, known := layerOf(s.dir)
		if !known && strings.HasPrefix(s.dir, "internal/") {
			t.Errorf("%s: its package has no place in layers", s.path)
		}
		for _, i := range s.file.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			ours, internal := strings.CutPrefix(path, module)
			switch {
			case !known && internal && strings.HasPrefix(ours, "cmd/"):
				t.Errorf("%s imports the command %s", s.path, ours)
			case known && internal && !within(ours, layers[part]) && ours != part:
				t.Errorf("%s imports %s; %s may import only %v", s.path, ours, part, layers[part])
			case within(s.dir, dataPlane) && strings.Contains(path, "k8s.io/"):
				t.Errorf("%s imports %s; the data plane does not know Kubernetes", s.path, path)
			case within(s.dir, []string{pure}) && within(path, impure):
				t.Errorf("%s imports %s; the replication core is pure", s.path, path)
			}
		}
	}
}

func TestReplicationCoreHasNoClockAndNoGoroutine(t *testing.T) {
	for _, s := range sources(t) {
		if !within(s.dir, []string{pure}) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", s.set.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker", "AfterFunc"}, n.Sel.Name) {
					t.Errorf("%s uses time.%s", s.set.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

// The product runs on the same flags everywhere: no part of it may know what starts its processes in tests and demos.
func TestNobodyKnowsTheRuntime(t *testing.T) {
	mention := regexp.MustCompile(`(?i)devcluster|127\.96|process[- ]runtime`)
	for _, s := range sources(t) {
		if found := mention.FindString(s.text); found != "" {
			t.Errorf("%s mentions %q", s.path, found)
		}
	}
}
