package smallhost

import (
	"context"
	"maps"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
)

// Fault is something broken where the host and the module meet.
type Fault struct {
	// What is wrong, in a few words.
	What string
	// Also are the promises ahead of its own that it can't but break too.
	Also   []string
	breaks func(*host, *broken)
}

// Start is the hosttest.Start of a homeserver with the fault.
func (f Fault) Start(ctx context.Context, setup hosttest.Setup) (*hosttest.Server, error) {
	return start(ctx, setup, f.breaks)
}

// Faults returns, for each promise by its name, faults of which each one breaks it.
func Faults() map[string][]Fault {
	all := make(map[string][]Fault)
	for _, part := range []map[string][]Fault{
		accountFaults(), clientFaults(), syncFaults(), deletionFaults(), storageFaults(), inboundFaults(), outboundFaults(),
	} {
		maps.Copy(all, part)
	}
	return all
}
