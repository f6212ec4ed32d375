package e2e

import (
	"math/rand/v2"
	"net/url"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// promoted is a standby that takes the place of a PostgreSQL whose machine is lost. Commits wait for the standby, so that nothing may be lost. There
// is one no longer than for the fault: commits take longer with it. No other fault may happen meanwhile, since a commit whose connection
// ends stands on the first PostgreSQL alone, and can be seen there: PostgreSQL promises no more.
func promoted(t testing.TB, pg *pgtest.Server, w *Wire) *fault {
	var standby *pgtest.Server
	t.Cleanup(func() {
		if standby != nil { // the test failed meanwhile
			orFail(t, standby.Remove())
		}
	})
	return &fault{
		name: "standby of PostgreSQL promoted", alone: true,
		inject: func(t testing.TB, _ *rand.Rand) {
			var err error
			if standby, err = pg.Standby(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		heal: func(t testing.TB) {
			orFail(t, pg.GiveWay(standby))
			u, err := url.Parse(pg.URL)
			if err != nil {
				t.Fatal(err)
			}
			w.Aim(u.Host)
			standby = nil
		},
	}
}
