package e2e

import (
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// wiredPostgres is a PostgreSQL with a wire in front of it.
type wiredPostgres struct {
	*pgtest.Server
	wire *Wire
}

// wirePostgres puts a wire in front of a PostgreSQL, and returns the URL of a database by way of it.
func wirePostgres(t testing.TB, database string) (*Wire, string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	address, err := remote.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	w := NewWire(t, address, u.Host)
	u.Host = address
	return w, u.String()
}

// postgresFaults are those of a PostgreSQL, and of the network between it and a server.
func postgresFaults(pg *pgtest.Server, w *Wire) []*fault {
	fair := func(testing.TB) { w.Fair() }
	return []*fault{
		{
			name: "PostgreSQL killed", part: "PostgreSQL",
			inject: func(t testing.TB, _ *rand.Rand) { orFail(t, pg.Kill()) },
			heal:   func(t testing.TB) { orFail(t, pg.Run()) },
		},
		{
			name: "PostgreSQL restarted", part: "PostgreSQL",
			inject: func(t testing.TB, _ *rand.Rand) { orFail(t, pg.Stop()) },
			heal:   func(t testing.TB) { orFail(t, pg.Run()) },
		},
		{
			name: "PostgreSQL slow", part: "wire",
			inject: func(_ testing.TB, chance *rand.Rand) {
				each, random := time.Duration(1+chance.IntN(60))*time.Millisecond, newLockedRand(chance.Uint64())
				w.Slow(func() time.Duration { return random.upTo(each) })
			},
			heal: fair,
		},
		{
			name: "connections to PostgreSQL cut", part: "wire",
			inject: func(_ testing.TB, chance *rand.Rand) {
				for range 1 + chance.IntN(5) {
					w.Cut()
					time.Sleep(time.Duration(chance.IntN(300)) * time.Millisecond)
				}
			},
			heal: fair,
		},
		{
			name: "connections to PostgreSQL cut on one side", part: "wire",
			inject: func(testing.TB, *rand.Rand) { w.Strand() },
			heal:   fair,
		},
		{
			name: "PostgreSQL unreachable", part: "wire",
			inject: func(testing.TB, *rand.Rand) { w.Close() },
			heal:   fair,
		},
		{
			name: "PostgreSQL silent", part: "wire",
			// What was held up goes on when the network heals, or is lost with its connection.
			inject: func(testing.TB, *rand.Rand) { w.Freeze() },
			heal:   fair,
		},
		{
			name: "commits cut off", part: "wire",
			inject: func(_ testing.TB, chance *rand.Rand) {
				random := newLockedRand(chance.Uint64())
				w.Commits(func() commitFate {
					switch {
					case random.chance(0.2):
						return commitUnanswered
					case random.chance(0.1):
						return commitLost
					}
					return commitPasses
				})
			},
			heal: fair,
		},
	}
}
