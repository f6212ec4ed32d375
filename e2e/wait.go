package e2e

import (
	"bufio"
	"io"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// deadline is what a condition may take. Only a fault reaches it.
const deadline = 30 * time.Second

// eventually waits for a condition; the condition says what it saw, for the failure.
func eventually(t testing.TB, what string, condition func() (ok bool, saw any)) {
	t.Helper()
	within(t, deadline, what, condition)
}

// within is eventually for a condition that was promised for a time.
func within(t testing.TB, deadline time.Duration, what string, condition func() (ok bool, saw any)) {
	t.Helper()
	end := time.Now().Add(deadline)
	for {
		ok, saw := condition()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not so after %s; last seen: %v", what, deadline, saw)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// duringSync sends a /sync, calls action once the server works on it and returns the response, or the next one if that had only news of
// other things.
func duringSync(t testing.TB, c *Client, s Sync, action func()) *SyncResponse {
	t.Helper()
	res, a := duringAnySync(t, c, s, action)
	if res == nil {
		t.Fatalf("/sync with since %q: want 200, got %v", s.Since, a)
	}
	return res
}

// duringAnySync is duringSync for a /sync that may be refused or cut off.
func duringAnySync(t testing.TB, c *Client, s Sync, action func()) (*SyncResponse, Answer) {
	t.Helper()
	type result struct {
		res *SyncResponse
		a   Answer
	}
	sent, done := make(chan struct{}), make(chan result, 1)
	wrote := sync.OnceFunc(func() { close(sent) }) // the transport writes it again if a kept connection was dead
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { wrote() },
	})
	go func() {
		res, a := c.pastNews(ctx, s)
		done <- result{res, a}
	}()
	select {
	case <-sent:
	case <-time.After(deadline):
		t.Fatal("/sync could not be sent")
	}
	// The server reads requests as they come: once it has answered a later one it is at work on
	// this one.
	if _, err := c.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	action()
	r := <-done
	return r.res, r.a
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// readUntil reads until a line contains the mark, and returns all it read.
func readUntil(t testing.TB, from io.Reader, mark string) string {
	t.Helper()
	result := make(chan string, 1)
	var out strings.Builder
	go func() {
		lines := bufio.NewScanner(from)
		for lines.Scan() {
			out.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), mark) {
				break
			}
		}
		result <- out.String()
		_, _ = io.Copy(io.Discard, from)
	}()
	select {
	case got := <-result:
		if !strings.Contains(got, mark) {
			t.Fatalf("want %q in the output, got\n%s", mark, got)
		}
		return got
	case <-time.After(startDeadline):
		t.Fatalf("%q is not printed", mark)
		return ""
	}
}
