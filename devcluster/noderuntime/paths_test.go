package noderuntime

import "testing"

func TestTranslate(t *testing.T) {
	ms := newMounts([]mount{
		{"/var/openebs", "/real/openebs"},
		{"/var/openebs/tmp", "/real/tmp"},
		{"/run", "/real/run"},
		{"/dev", "/dev"},
	})
	for _, tt := range []struct{ in, want string }{
		{"/var/openebs", "/real/openebs"},
		{"/var/openebs/", "/real/openebs/"},
		{"/var/openebs/pool/x", "/real/openebs/pool/x"},
		{"/var/openebs/tmp/x", "/real/tmp/x"}, // the innermost mount wins
		{"/var/openebs/tmpfile", "/real/openebs/tmpfile"},
		{"/var/openebsy", "/var/openebsy"}, // no boundary behind
		{"x/var/openebs", "x/var/openebs"}, // no boundary before
		{"--dir=/var/openebs", "--dir=/real/openebs"},
		{"a:/var/openebs:/run,/run/x", "a:/real/openebs:/real/run,/real/run/x"},
		{"unix:///run/csi.sock", "unix:///real/run/csi.sock"},
		{"http://run/var/openebs", "http://run/var/openebs"},
		{"cat '/run/a' >/var/openebs/b", "cat '/real/run/a' >/real/openebs/b"},
		{"/dev/sdb", "/dev/sdb"},
		{"", ""},
	} {
		if got := ms.translate(tt.in); got != tt.want {
			t.Errorf("translate(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// What has been put in must not be translated again.
func TestTranslateOnce(t *testing.T) {
	ms := newMounts([]mount{{"/a", "/a/a"}})
	if got := ms.translate("/a,/a/b"); got != "/a/a,/a/a/b" {
		t.Errorf("got %q", got)
	}
}
