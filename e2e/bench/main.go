// Command bench measures servers with the module beside unmodified Dendrite, and on request beside Synapse, in one run on one
// machine. It starts the servers and PostgreSQL itself, and uses nothing of them but their client and federation APIs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	options
	progress  *progress
	home      string
	transport *http.Transport
	users     int

	delayLoads   map[*server]*load
	curves       []*curve
	backlogCosts []*backlogCosts
	failures     []string
}

func (b *bench) newUser() string {
	b.users++
	return fmt.Sprintf("user%d", b.users)
}

// fail records what went wrong where the measurement can go on.
func (b *bench) fail(err error) {
	b.failures = append(b.failures, err.Error())
	b.progress.say("FAILED: %v", err)
}

// run measures and writes the files. It returns an error if our side failed or broke a promise.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	b := &bench{
		options: o, progress: &progress{to: stderr, start: time.Now()}, transport: newTransport(), delayLoads: map[*server]*load{},
	}
	for _, dir := range []string{b.out, b.profiles} {
		if dir != "" {
			if err = os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
	}
	if b.home, err = os.MkdirTemp("", "todevice-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.home)) }()
	b.progress.say("builds the servers")
	if err = e2e.Prepare(b.home, false); err != nil {
		return err
	}
	if os.Getenv(pgtest.EnvURL) == "" {
		b.progress.say("starts PostgreSQL")
		server, startErr := pgtest.Start()
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, server.Remove()) }()
		if err = os.Setenv(pgtest.EnvURL, server.URL); err != nil {
			return err
		}
	}
	results, measured := b.measure(ctx)
	return errors.Join(measured, b.publish(results, stdout), broken(results))
}

// measure measures the rows on each database. A row that fails does not keep the others from being measured.
func (b *bench) measure(ctx context.Context) (results []*result, err error) {
	for _, db := range b.databases {
		s := newStage(b, db)
		for _, r := range b.rows {
			if ctx.Err() != nil {
				break
			}
			found, failed := r.measure(ctx, s)
			if failed != nil {
				b.fail(failed)
				err = errors.Join(err, failed)
			} else {
				results = append(results, found...)
			}
			if len(r.roles) > 0 {
				err = errors.Join(err, s.strike(ctx, r.roles...))
			}
		}
		err = errors.Join(err, s.strike(ctx))
	}
	return results, errors.Join(err, ctx.Err())
}

// publish prints the table and writes the files.
func (b *bench) publish(results []*result, stdout io.Writer) error {
	r := b.report(results)
	m := r.Machine
	fmt.Fprintf(stdout, "%s, %d cores, %s, Linux %s, %s, PostgreSQL %s, %s/dendrite %s, commit %s\n",
		m.CPU, m.Cores, m.Memory, m.Kernel, m.Go, m.PostgreSQL, m.Host, m.Dendrite, m.Commit)
	fmt.Fprintf(stdout, "on all sides: PostgreSQL max_open_conns %d, max_idle_conns %d, log level %s, contents of %d bytes; %s\n\n",
		e2e.MaxOpenConns, maxIdleConns, logLevel, contentBytes, r.Took)
	err := writeTable(stdout, results, b.withSynapse)
	written, writing := r.write(b.out)
	delays, drawing := drawDelays(b.out, b.curves)
	costs, drawingCosts := drawBacklogs(b.out, b.backlogCosts, b.backlogs)
	for _, failure := range b.failures {
		fmt.Fprintln(stdout, "failed:", failure)
	}
	files := append(append([]string{written}, delays...), costs...)
	fmt.Fprintf(stdout, "\nwritten: %s\n", strings.Join(files, " "))
	return errors.Join(err, writing, drawing, drawingCosts)
}

// broken returns an error if a message was lost, doubled or out of order on our side.
func broken(results []*result) error {
	var errs []error
	for _, r := range results {
		if f := r.Sides[ours]; f != nil && f.Wrong.total() > 0 {
			errs = append(errs, fmt.Errorf("%s on %s: %+v", r.Title, r.Database, f.Wrong))
		}
	}
	return errors.Join(errs...)
}
