package e2e

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// natsFaults are those of a nats-server. The streams may be lost with it: the module keeps nothing there but the notes that wake
// the host's queues, which it writes anew.
func natsFaults(n *NATS) []*fault {
	start := func(t testing.TB) { n.Start(t) }
	return []*fault{
		{name: "NATS killed", part: "NATS", inject: func(t testing.TB, _ *rand.Rand) { n.Kill(t) }, heal: start},
		{name: "NATS stopped", part: "NATS", inject: func(t testing.TB, _ *rand.Rand) { n.Stop(t) }, heal: start},
		{
			name: "NATS emptied", part: "NATS",
			inject: func(t testing.TB, _ *rand.Rand) {
				n.Kill(t)
				orFail(t, os.RemoveAll(n.dir))
			},
			heal: start,
		},
	}
}

// endsForNATS tells whether a server ended itself as it does once NATS is back, or as the host does when NATS takes connections again and its
// streams are not there yet (setup/jetstream/helpers.go).
func endsForNATS(output string) bool {
	return strings.Contains(output, "the connection to NATS was lost") || strings.Contains(output, `level=fatal msg="nats: no responders`)
}
