package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// A side is a kind of server that is measured.
type side string

const (
	unmodified side = "unmodified"
	ours       side = "ours"
	synapse    side = "synapse"
)

const (
	logLevel     = "warn"
	maxIdleConns = e2e.MaxOpenConns
)

// moduleConfig is the to_device section: what the module does by default, without the small limits of the tests.
var moduleConfig = map[string]any{"enabled": true, "max_message_bytes": 65536, "max_request_bytes": 10485760}

// stage holds the servers of all sides on one database. Each is started when it is first asked for.
type stage struct {
	b       *bench
	db      e2e.Backend
	servers map[string]*server
}

// server is a server that runs, and where its clients reach it.
type server struct {
	*e2e.Server
	*homeserver
	side  side
	role  string
	dsn   string
	pprof string // where profiles are served, if they are
}

func newStage(b *bench, db e2e.Backend) *stage {
	return &stage{b: b, db: db, servers: map[string]*server{}}
}

// sides returns those that run on the stage's database, in the order in which they are measured.
func (s *stage) sides() []side {
	if s.b.withSynapse && s.db == e2e.Postgres {
		return []side{unmodified, ours, synapse}
	}
	return []side{unmodified, ours}
}

// server returns the server of a side with a role, which is empty at first.
func (s *stage) server(ctx context.Context, of side, role string) (*server, error) {
	key := string(of) + "-" + role
	if got := s.servers[key]; got != nil {
		return got, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.b.progress.say("starts the server %q", role)
	home := filepath.Join(s.b.home, string(s.db)+"-"+key)
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, err
	}
	o := e2e.Options{
		LogLevel: logLevel, MaxIdleConns: maxIdleConns, Unmodified: of == unmodified, ToDevice: moduleConfig,
		Federation: role == here || role == there,
	}
	made := &server{side: of, role: role}
	var err error
	if s.db == e2e.Postgres {
		if o.Postgres, err = e2e.CreateDatabase(); err != nil {
			return nil, err
		}
		made.dsn = o.Postgres
	}
	if s.b.profiles != "" && of == ours {
		if made.pprof, err = remote.FreeAddress(); err != nil {
			return nil, err
		}
		o.Env = append(o.Env, "PPROFLISTEN="+made.pprof)
	}
	if of == synapse {
		made.Server, err = e2e.NewSynapse(home, o)
	} else {
		made.Server, err = e2e.New(s.db, home, o)
	}
	if err == nil {
		err = made.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", of, s.db, err)
	}
	made.homeserver = newHomeserver(made.URL, s.b.transport)
	s.servers[key] = made
	return made, nil
}

// strike ends the servers that have one of the roles, or all, and deletes their data. When the context has ended, the signal
// that ended it may have ended PostgreSQL too: then the databases are left to go with it.
func (s *stage) strike(ctx context.Context, roles ...string) error {
	var errs []error
	for key, got := range s.servers {
		keep := len(roles) > 0
		for _, role := range roles {
			if key == string(got.side)+"-"+role {
				keep = false
			}
		}
		if keep {
			continue
		}
		errs = append(errs, got.Kill(), os.RemoveAll(filepath.Join(s.b.home, string(s.db)+"-"+key)))
		if got.dsn != "" && ctx.Err() == nil {
			errs = append(errs, e2e.DropDatabase(got.dsn))
		}
		delete(s.servers, key)
		delete(s.b.delayLoads, got)
	}
	return errors.Join(errs...)
}

// users makes so many users with so many devices each. The devices of a user are beside each other.
func (h *homeserver) users(ctx context.Context, b *bench, users, devices int) ([]*device, error) {
	const atOnce = 8
	all := make([]*device, users*devices)
	errs := make([]error, users)
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for u := range users {
		name := b.newUser()
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			first, err := h.register(ctx, name)
			for d := 0; d < devices && err == nil; d++ {
				if all[u*devices+d] = first; d > 0 {
					all[u*devices+d], err = first.login(ctx)
				}
			}
			errs[u] = err
		})
	}
	wait.Wait()
	return all, errors.Join(errs...)
}
