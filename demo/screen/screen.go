// Package screen prints a run for people: steps, commands with their output, and one line that moves. What is the same
// in every run also goes into a transcript.
package screen

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/cstor-go/cstor/demo/transcript"
)

// Screen prints. Its methods may be called concurrently.
type Screen struct {
	Transcript transcript.Transcript

	mu       sync.Mutex
	out      io.Writer
	live     bool // out is a terminal
	moving   bool // the last line is one that moves
	lastMove time.Time
	begun    time.Time
}

// New returns a screen on out.
func New(out io.Writer) *Screen {
	s := &Screen{out: out, begun: time.Now()}
	if f, ok := out.(*os.File); ok {
		s.live = term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	}
	return s
}

const (
	bold  = "\x1b[1m"
	faint = "\x1b[2m"
	plain = "\x1b[0m"
	clear = "\r\x1b[K"
)

// style is used on terminals only.
func (s *Screen) style(code, text string) string {
	if !s.live {
		return text
	}
	return code + text + plain
}

// print writes whole lines; a line that moves makes room.
func (s *Screen) print(text string) {
	if s.moving && s.live {
		fmt.Fprint(s.out, clear)
	}
	s.moving = false
	fmt.Fprintln(s.out, text)
}

// Step begins a step.
func (s *Screen) Step(n int, title string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("%d. %s", n, title)
	s.print(fmt.Sprintf("\n%s  %s", s.style(bold, line), s.style(faint, fmt.Sprintf("[%.1f s]", time.Since(s.begun).Seconds()))))
	s.print("")
	s.Transcript.Line("")
	s.Transcript.Line(line)
	s.Transcript.Line("")
}

// Say prints a sentence that is the same in every run.
func (s *Screen) Say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	s.print(line)
	s.Transcript.Line(line)
}

// Note prints what differs from run to run.
func (s *Screen) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(fmt.Sprintf(format, args...))
}

// Command prints a command and its output.
func (s *Screen) Command(command, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(s.style(bold, "$ "+command))
	s.print(output)
	s.Transcript.Command(command, output)
}

// Input shows text that is given to a command.
func (s *Screen) Input(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(text) {
		s.print("    " + strings.TrimRight(line, "\n"))
		s.Transcript.Line("    " + strings.TrimRight(line, "\n"))
	}
}

// moveEvery is how often a line that moves is printed where there is no terminal.
const moveEvery = 2 * time.Second

// Move prints a line in the place of the one that the last Move printed.
func (s *Screen) Move(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		fmt.Fprint(s.out, clear+line)
	} else if now := time.Now(); now.Sub(s.lastMove) >= moveEvery {
		fmt.Fprintln(s.out, line)
		s.lastMove = now
	}
	s.moving = true
}

// Moved prints the last state of a line that moves, and lets it stay.
func (s *Screen) Moved(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(line)
	s.lastMove = time.Time{}
}

// Write lets the screen be the output of a program: whole lines.
func (s *Screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(s.style(faint, strings.TrimRight(string(b), "\n")))
	return len(b), nil
}

// Bar draws how much of total is done, width characters wide.
func Bar(done, total int64, width int) string {
	full := 0
	if total > 0 {
		full = int(min(done, total) * int64(width) / total)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}
