package e2e

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// outOfConnections is a PostgreSQL that others hold all connections of. The server's own are cut first, since it keeps
// some.
func outOfConnections(pg *pgtest.Server, w *Wire) *fault {
	var end context.CancelFunc
	var done chan struct{}
	var refused int
	return &fault{
		name: "PostgreSQL out of connections", part: "PostgreSQL",
		inject: func(t testing.TB, _ *rand.Rand) {
			db, err := sql.Open("postgres", pg.URL)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			end, done, refused = cancel, make(chan struct{}), 0
			w.Cut()
			taken := make(chan struct{})
			go func() {
				defer close(done)
				defer db.Close() //nolint:errcheck
				for ctx.Err() == nil {
					conn, err := db.Conn(ctx)
					if err == nil {
						defer conn.Close() //nolint:errcheck
						continue
					}
					if refused++; refused == 1 {
						close(taken)
						w.Cut()
					}
					time.Sleep(time.Millisecond) // the server gives one back now and then
				}
			}()
			<-taken
		},
		heal: func(t testing.TB) {
			end()
			<-done
		},
	}
}
