package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestFatalWhileServingEndsItsGoroutineAlone(t *testing.T) {
	logger := logrus.New()
	logger.Out = io.Discard
	f := handleFatal()
	f.serving.Store(true)
	defer f.serving.Store(false)
	for range 3 {
		ended, after := make(chan struct{}), false
		go func() {
			defer close(ended)
			logger.Fatal("a stream is gone")
			after = true
		}()
		<-ended
		if after {
			t.Error("what follows Fatal was run")
		}
	}
	select {
	case err := <-f.failed:
		if !errors.Is(err, errHost) {
			t.Error(err)
		}
	default:
		t.Error("nobody is told")
	}
}

func TestFatalOtherwiseEndsTheProcess(t *testing.T) {
	const child = "TODEVICE_TEST_FATAL"
	if os.Getenv(child) != "" {
		handleFatal()
		logrus.Fatal("no configuration")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1")
	output, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.ExitCode() != 1 || !strings.Contains(string(output), "no configuration") {
		t.Errorf("%v\n%s", err, output)
	}
}

func TestPanicInAStopEndsItsGoroutineAlone(t *testing.T) {
	logger := logrus.New()
	logger.Out = io.Discard
	f := &fatalExits{}
	logger.AddHook(f)
	panics := func() (recovered any) {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { recovered = recover() }()
			logger.WithError(context.Canceled).Panicf("an event is not stored")
			t.Error("what follows Panic was run")
		}()
		<-ended
		return recovered
	}
	if panics() == nil {
		t.Error("there was no panic while nothing stopped")
	}
	f.stopping.Store(true)
	if got := panics(); got != nil {
		t.Errorf("there was a panic in a stop: %v", got)
	}
}
