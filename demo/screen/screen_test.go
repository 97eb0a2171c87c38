package screen

import (
	"bytes"
	"strings"
	"testing"
)

func TestWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	s := New(&out)
	s.Step(1, "Begin")
	s.Say("the same")
	s.Note("took 3.2 s")
	s.Command("kubectl get x", "NAME   AGE\na      3s\n")
	s.Move("half")
	s.Moved("done")
	if strings.ContainsAny(out.String(), "\x1b\r") {
		t.Errorf("there are control characters in %q", out.String())
	}
	for _, text := range []string{"1. Begin", "the same", "took 3.2 s", "$ kubectl get x", "a      3s", "half", "done"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("%q was not printed", text)
		}
	}
	if got, want := s.Transcript.String(), "\n1. Begin\n\nthe same\n$ kubectl get x\nNAME   AGE\na      <age>\n"; got != want {
		t.Errorf("the transcript is %q, want %q", got, want)
	}
}

func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	s := New(&out)
	s.live = true
	s.Move("10%")
	s.Move("20%")
	s.Note("meanwhile")
	if got, want := out.String(), clear+"10%"+clear+"20%"+clear+"meanwhile\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestBar(t *testing.T) {
	for want, done := range map[string]int64{"[....]": 0, "[#...]": 30, "[####]": 100} {
		if got := Bar(done, 100, 4); got != want {
			t.Errorf("Bar(%d) is %s, want %s", done, got, want)
		}
	}
	if got := Bar(0, 0, 2); got != "[..]" {
		t.Errorf("a bar of nothing is %s", got)
	}
}
