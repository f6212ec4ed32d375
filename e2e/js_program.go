package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// jsProgram is a Node.js process with devices that encrypt by matrix-js-sdk. It does what it is told, everything at once.
type jsProgram struct {
	writing sync.Mutex // apart from what is waiting: the program may wait for someone to take its answers
	in      io.WriteCloser

	out    jsLog
	last   atomic.Int64
	exited chan struct{}

	mu      sync.Mutex
	waiting map[int64]chan jsAnswer
}

// jsAnswer is what the program says to a command.
type jsAnswer struct {
	ID     int64           `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
}

// startJS starts the program, and ends it with the test.
func startJS(t testing.TB) *jsProgram {
	t.Helper()
	module, err := ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(module, "e2e", "js")
	if _, err = os.Stat(filepath.Join(dir, "node_modules", "matrix-js-sdk")); err != nil {
		t.Fatalf("matrix-js-sdk is not there, run `make js`: %v", err)
	}
	node := exec.Command("node", filepath.Join(dir, "main.js"))
	node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &jsProgram{waiting: map[int64]chan jsAnswer{}, exited: make(chan struct{})}
	node.Stderr = &p.out
	p.in, err = node.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = node.Start(); err != nil {
		t.Fatalf("install Node.js 20 or newer: %v", err)
	}
	go func() {
		defer close(p.exited)
		p.listen(answers)
		_ = node.Wait()
	}()
	t.Cleanup(func() {
		_ = p.in.Close()
		<-p.exited
		if t.Failed() {
			t.Logf("what matrix-js-sdk warned of:\n%s", p.out.tail())
		}
	})
	return p
}

// listen hands each answer to who waits for it.
func (p *jsProgram) listen(answers io.Reader) {
	lines := bufio.NewReader(answers)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var a jsAnswer
		if err = json.Unmarshal(line, &a); err != nil {
			_, _ = fmt.Fprintf(&p.out, "not an answer: %s", line)
			continue
		}
		p.mu.Lock()
		if asker := p.waiting[a.ID]; asker != nil {
			asker <- a
			delete(p.waiting, a.ID)
		}
		p.mu.Unlock()
	}
}

// do lets a device obey a command, and reads what it returns into the result, unless that is nil.
func (p *jsProgram) do(ctx context.Context, device, command string, args object, result any) error {
	id := p.last.Add(1)
	answer := make(chan jsAnswer, 1)
	line := object{"id": id, "device": device, "command": command}
	maps.Copy(line, args)
	p.mu.Lock()
	p.waiting[id] = answer
	p.mu.Unlock()
	p.writing.Lock()
	_, err := p.in.Write(append(mustJSON(line), '\n'))
	p.writing.Unlock()
	if err != nil {
		return err
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return fmt.Errorf("%s: %s", command, a.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Result, result)
	case <-p.exited:
		return errors.New("the program has ended")
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

// jsLog keeps the last 32 KiB of what it is given.
type jsLog struct {
	mu   sync.Mutex
	text []byte
}

func (l *jsLog) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, text...)
	l.text = l.text[max(0, len(l.text)-32<<10):]
	return len(text), nil
}

func (l *jsLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.text))
}
