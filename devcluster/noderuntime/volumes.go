package noderuntime

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// hostDirs exist in every node's root, as on a real machine, so that hostPath volumes of type Directory work.
var hostDirs = []string{
	"etc", "lib/modules", "sys", "run", "tmp", "var/lib/kubelet/plugins", "var/lib/kubelet/plugins_registry",
	"var/lib/kubelet/pods", "var/log", "var/openebs",
}

// realHostDirs are hostPaths that mean the machine's own directory: devices are the same on all nodes.
var realHostDirs = []string{"/dev", "/run/udev"}

// hostPath is where a path of the node's file system really is.
func (n *node) hostPath(path string) string {
	path = filepath.Clean(path)
	for _, real := range realHostDirs {
		if path == real || strings.HasPrefix(path, real+"/") {
			if _, err := os.Stat(real); err == nil {
				return path
			}
		}
	}
	return filepath.Join(n.dir, "root", path)
}

// mountVolumes brings every volume of the pod into being; it returns where each is. It can be called again to bring
// the contents up to date.
func (p *pod) mountVolumes(ctx context.Context) (map[string]string, error) {
	where := map[string]string{}
	obj := p.object()
	for i := range obj.Spec.Volumes {
		v := &obj.Spec.Volumes[i]
		dir, err := p.mountVolume(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err)
		}
		where[v.Name] = dir
	}
	return where, nil
}

func (p *pod) mountVolume(ctx context.Context, v *v1.Volume) (string, error) {
	dir := filepath.Join(p.dir, "volumes", v.Name)
	switch {
	case v.HostPath != nil:
		dir = p.node.hostPath(v.HostPath.Path)
		return dir, checkHostPath(dir, v.HostPath)
	case v.EmptyDir != nil:
		return dir, os.MkdirAll(dir, 0o777)
	}
	var files map[string]string
	var err error
	switch {
	case v.ConfigMap != nil:
		files, err = p.configMap(ctx, v.ConfigMap.Name, optional(v.ConfigMap.Optional))
		files = selectItems(files, v.ConfigMap.Items)
	case v.Secret != nil:
		files, err = p.secret(ctx, v.Secret.SecretName, optional(v.Secret.Optional))
		files = selectItems(files, v.Secret.Items)
	case v.DownwardAPI != nil:
		files, err = p.downwardFiles(v.DownwardAPI.Items)
	case v.Projected != nil:
		files, err = p.projectedFiles(ctx, v.Projected.Sources)
	default:
		return "", configError{fmt.Errorf("this kind of volume is not supported by the process runtime")}
	}
	if err != nil {
		return "", err
	}
	return dir, writeFiles(dir, files)
}

// checkHostPath applies the type of a hostPath. A path without type is made, as container runtimes do.
func checkHostPath(dir string, v *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if v.Type != nil {
		kind = *v.Type
	}
	st, err := os.Stat(dir)
	var ok bool
	switch kind {
	case v1.HostPathUnset, v1.HostPathDirectoryOrCreate:
		if err != nil {
			return os.MkdirAll(dir, 0o755)
		}
		ok = kind == v1.HostPathUnset || st.IsDir()
	case v1.HostPathFileOrCreate:
		if err != nil {
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				return err
			}
			return os.WriteFile(dir, nil, 0o644)
		}
		ok = st.Mode().IsRegular()
	case v1.HostPathDirectory:
		ok = err == nil && st.IsDir()
	case v1.HostPathFile:
		ok = err == nil && st.Mode().IsRegular()
	case v1.HostPathSocket:
		ok = err == nil && st.Mode()&fs.ModeSocket != 0
	case v1.HostPathCharDev:
		ok = err == nil && st.Mode()&fs.ModeCharDevice != 0
	case v1.HostPathBlockDev:
		ok = err == nil && st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	}
	if !ok {
		return configError{fmt.Errorf("hostPath type check failed: %s is not a %s", v.Path, kind)}
	}
	return nil
}

func (p *pod) projectedFiles(ctx context.Context, sources []v1.VolumeProjection) (map[string]string, error) {
	all := map[string]string{}
	for _, s := range sources {
		var files map[string]string
		var err error
		switch {
		case s.ConfigMap != nil:
			files, err = p.configMap(ctx, s.ConfigMap.Name, optional(s.ConfigMap.Optional))
			files = selectItems(files, s.ConfigMap.Items)
		case s.Secret != nil:
			files, err = p.secret(ctx, s.Secret.Name, optional(s.Secret.Optional))
			files = selectItems(files, s.Secret.Items)
		case s.DownwardAPI != nil:
			files, err = p.downwardFiles(s.DownwardAPI.Items)
		case s.ServiceAccountToken != nil:
			var token string
			token, err = p.credentials.token(ctx, s.ServiceAccountToken)
			files = map[string]string{s.ServiceAccountToken.Path: token}
		}
		if err != nil {
			return nil, err
		}
		for k, v := range files {
			all[k] = v
		}
	}
	return all, nil
}

func (p *pod) downwardFiles(items []v1.DownwardAPIVolumeFile) (map[string]string, error) {
	files := map[string]string{}
	for _, it := range items {
		var value string
		var err error
		switch {
		case it.FieldRef != nil:
			value, err = p.field(it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			value, err = p.resourceField(&v1.Container{}, it.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		files[it.Path] = value
	}
	return files, nil
}

// selectItems applies the items of a volume source: all keys if there are none.
func selectItems(data map[string]string, items []v1.KeyToPath) map[string]string {
	if len(items) == 0 {
		return data
	}
	out := map[string]string{}
	for _, it := range items {
		if v, ok := data[it.Key]; ok {
			out[it.Path] = v
		}
	}
	return out
}

// writeFiles makes dir hold exactly files. A file that changes is replaced in one step, and one that does not is not
// touched.
func writeFiles(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := replaceFile(filepath.Join(dir, name), []byte(content)); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if _, ok := files[name]; !ok {
			return os.Remove(path)
		}
		return nil
	})
}

func replaceFile(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// containerMounts is how one container sees the volumes.
func (p *pod) containerMounts(c *v1.Container, env *environment, where map[string]string) (mounts, error) {
	var ms []mount
	for _, m := range c.VolumeMounts {
		real, ok := where[m.Name]
		if !ok {
			return nil, configError{fmt.Errorf("volume %q of mount %s does not exist", m.Name, m.MountPath)}
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = env.expand(m.SubPathExpr)
		}
		if sub != "" {
			real = filepath.Join(real, filepath.Join("/", sub))
			if _, err := os.Stat(real); os.IsNotExist(err) {
				if err := os.MkdirAll(real, 0o755); err != nil {
					return nil, fmt.Errorf("making subPath of volume %q: %w", m.Name, err)
				}
			}
		}
		if path := strings.TrimRight(m.MountPath, "/"); path != "" {
			ms = append(ms, mount{path: path, real: real})
		}
	}
	return newMounts(ms), nil
}
