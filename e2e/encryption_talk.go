package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// talk lets devices talk all at once, each with a pause after every message, while something is done.
func talk[D any](t testing.TB, devices []D, pace time.Duration, say func(D) error, meanwhile func()) {
	t.Helper()
	quit := make(chan struct{})
	var talkers sync.WaitGroup
	for _, d := range devices {
		talkers.Go(func() {
			for open(quit) {
				if err := say(d); err != nil {
					t.Errorf("%v talks: %v", d, err)
					return
				}
				if !sleep(t.Context(), pace) {
					return
				}
			}
		})
	}
	defer talkers.Wait()
	defer close(quit)
	meanwhile()
}

// progress waits until so many more messages are said, and twice as many are read.
func progress(t testing.TB, messages int, counts func() (said, read int)) {
	t.Helper()
	said, read := counts()
	within(t, silentRecovery, fmt.Sprintf("the talk moves on by %d messages", messages), func() (bool, any) {
		s, n := counts()
		return s >= said+messages && n >= read+2*messages, []int{s - said, n - read}
	})
}
