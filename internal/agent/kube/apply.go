package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Apply makes obj say what want says: it patches the fields that differ from obj as last read, and nothing when none
// does. stamp is added to a patch that is made, for times that are not worth a patch of their own. obj holds the result.
func Apply(ctx context.Context, c client.Client, obj client.Object, want, stamp Fields) (changed bool, err error) {
	diff, err := Diff(obj, want)
	if err != nil || len(diff) == 0 {
		return false, err
	}
	if err := Merge(ctx, c, obj, merge(diff, stamp)); err != nil {
		return false, err
	}
	return true, nil
}

// Diff returns the part of want that obj does not say yet.
func Diff(obj client.Object, want Fields) (Fields, error) {
	have, err := plain(obj)
	if err != nil {
		return nil, fmt.Errorf("patch of %T %s: %w", obj, obj.GetName(), err)
	}
	fields, err := plain(want)
	if err != nil {
		return nil, fmt.Errorf("patch of %T %s: %w", obj, obj.GetName(), err)
	}
	return diff(have, fields), nil
}

// plain is v as JSON sees it, so that values of different types compare by what would be sent.
func plain(v any) (m map[string]any, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(b, &m)
}

func diff(have, want map[string]any) Fields {
	out := Fields{}
	for k, w := range want {
		h := have[k]
		if sub, ok := w.(map[string]any); ok {
			d := whole(sub)
			if hs, ok := h.(map[string]any); ok {
				d = diff(hs, sub)
			}
			if len(d) > 0 {
				out[k] = d
			}
			continue
		}
		if !reflect.DeepEqual(h, w) && !(h == nil && zero(w)) {
			out[k] = w
		}
	}
	return out
}

// whole is what to write where there is nothing yet: all but removals. A schema may require fields that are zero.
func whole(want map[string]any) Fields {
	out := Fields{}
	for k, w := range want {
		if sub, ok := w.(map[string]any); ok {
			if f := whole(sub); len(f) > 0 {
				out[k] = f
			}
		} else if w != nil {
			out[k] = w
		}
	}
	return out
}

// zero reports whether a field that is absent says the same as v.
func zero(v any) bool { return v == nil || v == "" || v == false || v == 0.0 }

// merge adds b's fields to a.
func merge(a, b Fields) Fields {
	for k, v := range b {
		bs, ok := v.(Fields)
		as, both := a[k].(Fields)
		if ok && both {
			v = merge(as, bs)
		}
		a[k] = v
	}
	return a
}
