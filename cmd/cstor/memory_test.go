package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPlanMemory(t *testing.T) {
	const mi, gi = 1 << 20, 1 << 30
	for _, c := range []struct {
		limits limits
		want   memory
	}{
		{limits{}, memory{256 * mi, "", 256 * mi, 64 * mi, 1 << 18, 32 * mi}}, // the engine's defaults
		{limits{cgroup: 128 * mi}, memory{128 * mi, "cgroup", 128 * mi / 10 * 9, 32 * mi, 1 << 17, 16 * mi}},
		{limits{container: 4 * gi, cgroup: 4 * gi}, memory{4 * gi, "limit of the container", 4 * gi / 10 * 9, gi, 1 << 20, 512 * mi}},
		{limits{container: 4 * gi, cgroup: gi}, memory{gi, "cgroup", gi / 10 * 9, 256 * mi, 1 << 20, 128 * mi}},
		{limits{container: 500 * mi}, memory{500 * mi, "limit of the container", 500 * mi / 10 * 9, 125 * mi, 1 << 18, 500 * mi / 8}},
		{limits{runtime: gi, container: 2 * gi}, memory{gi, "GOMEMLIMIT", 0, 256 * mi, 1 << 20, 128 * mi}},
		{limits{runtime: 2 * gi, container: gi}, memory{gi, "limit of the container", 0, 256 * mi, 1 << 20, 128 * mi}}, // the user's stays the runtime's
		{limits{container: 16 * mi}, memory{16 * mi, "limit of the container", 16 * mi / 10 * 9, 4 * mi, 1 << 15, 2 * mi}},
		{limits{container: 1 << 50}, memory{1 << 50, "limit of the container", 1 << 50 / 10 * 9, 1 << 48, 1 << 20, 1 << 47}},
	} {
		if got := planMemory(c.limits); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.limits, got, c.want)
		}
	}
}

func TestCgroupLimit(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing":   {nil, 0},
		"container": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "134217728\n"}, 128 << 20},
		"no limit":  {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0},
		"by the host's name, the parent has less": {map[string]string{
			"proc/self/cgroup":                          "0::/kubepods/pod1/c1\n",
			"sys/fs/cgroup/kubepods/pod1/c1/memory.max": "3000\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "2000\n", "sys/fs/cgroup/kubepods/memory.max": "max\n",
			"sys/fs/cgroup/kubepods/pod2/memory.max": "1000\n",
		}, 2000},
		"version 1": {map[string]string{
			"proc/self/cgroup":                                     "5:cpu,memory:/docker/c1\n1:name=systemd:/x\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":           "9223372036854771712\n",
			"sys/fs/cgroup/memory/docker/c1/memory.limit_in_bytes": "5000\n",
		}, 5000},
		"version 1, seen from the container": {map[string]string{
			"proc/self/cgroup": "5:memory:/docker/c1\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n",
		}, 6000},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			file = filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := cgroupLimit(root); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
