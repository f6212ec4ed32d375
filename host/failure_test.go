package host

import (
	"context"
	"errors"
	"testing"
)

func TestFailSync(t *testing.T) {
	ctx, failed := withSyncFailure(t.Context())
	if failed.failure() != nil || ctx.Err() != nil {
		t.Fatalf("the request begins with %v, %v", failed.failure(), ctx.Err())
	}
	first := errors.New("first")
	below, cancel := context.WithCancel(ctx) // as the host makes them on the way
	defer cancel()
	failSync(below, first)
	failSync(below, errors.New("second"))
	if !errors.Is(failed.failure(), first) {
		t.Errorf("the failure is %v, want the first", failed.failure())
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("the request goes on: %v", ctx.Err())
	}
}

func TestFailSyncOfOneRequestIsNotOfAnother(t *testing.T) {
	one, failedOne := withSyncFailure(t.Context())
	other, failedOther := withSyncFailure(t.Context())
	defer failedOther.cancel()
	failSync(one, errors.New("away"))
	if failedOne.failure() == nil || failedOther.failure() != nil || other.Err() != nil {
		t.Errorf("the failures are %v and %v", failedOne.failure(), failedOther.failure())
	}
}

func TestFailSyncOutsideOfASync(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failSync(ctx, errors.New("away"))
	if ctx.Err() != nil {
		t.Errorf("the context ended: %v", ctx.Err())
	}
}
