package host

import (
	"context"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// syncFailure is carried by the context of a /sync request to where its parts are read. The host
// takes a failed read for an empty queue, moves the since token on, and would delete the
// unread messages at the next /sync: a request with a failure must be answered by a 5xx.
type syncFailure struct {
	cancel context.CancelFunc
	mu     sync.Mutex
	err    error
	read   []types.Message // for the response
}

type syncFailureKey struct{}

func withSyncFailure(ctx context.Context) (context.Context, *syncFailure) {
	ctx, cancel := context.WithCancel(ctx)
	f := &syncFailure{cancel: cancel}
	return context.WithValue(ctx, syncFailureKey{}, f), f
}

// failSync marks the request that ctx belongs to as failed, and ends it: the host would go on
// waiting. Outside of a /sync request it does nothing.
func failSync(ctx context.Context, err error) {
	f, ok := ctx.Value(syncFailureKey{}).(*syncFailure)
	if !ok {
		return
	}
	f.mu.Lock()
	if f.err == nil {
		f.err = err
	}
	f.mu.Unlock()
	f.cancel()
}

// failure returns the first error, or nil.
func (f *syncFailure) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// noteRead notes messages for the response of the request that ctx belongs to. It returns false outside of a /sync request.
func noteRead(ctx context.Context, messages []types.Message) bool {
	f, ok := ctx.Value(syncFailureKey{}).(*syncFailure)
	if !ok {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read = append(f.read, messages...)
	return true
}

// messages returns what was read for the response.
func (f *syncFailure) messages() []types.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read
}
