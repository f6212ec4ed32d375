package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// startTimeout is generous: the first start makes the tables of every component.
const startTimeout = 2 * time.Minute

// quickstart sets up a server in a directory, starts it on loopback, shows a message on its way from
// one device to another, and serves until it is interrupted.
func quickstart(args []string) error {
	set := flag.NewFlagSet("dendrite-todevice quickstart", flag.ContinueOnError)
	dir := set.String("dir", "./quickstart-data", "where the keys, dendrite.yaml and the databases are kept")
	address := set.String("http-bind-address", "", "the loopback address to serve on (default 127.0.0.1:8008, or a free port if that is taken)")
	once := set.Bool("once", false, "stop after the demonstration instead of serving")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if set.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	site, err := prepareSite(*dir)
	if err != nil {
		return fmt.Errorf("setting up %s: %w", *dir, err)
	}
	if *address == "" {
		if *address, err = loopbackAddress(); err != nil {
			return err
		}
	}
	server, err := startServer(site, *address)
	if err != nil {
		return err
	}
	defer server.stop() //nolint:errcheck // the earlier error is the one to report
	demo := demonstration{base: "http://" + *address, site: site}
	if err = demo.waitUntilUp(ctx, server.exited); err != nil {
		return fmt.Errorf("%w; see %s", err, site.logFile())
	}
	fmt.Printf("Dendrite with send-to-device messaging runs on %s, its files are in %s.\n\n", demo.base, site.dir)
	if err = demo.run(ctx); err != nil {
		return err
	}
	if *once {
		return server.stop()
	}
	fmt.Println("Serving until interrupted (Ctrl-C).")
	select {
	case <-ctx.Done():
		return server.stop()
	case <-server.exited:
		return fmt.Errorf("the server stopped; see %s", site.logFile())
	}
}

// loopbackAddress returns Dendrite's usual port on loopback, or a free one if that is taken.
func loopbackAddress() (string, error) {
	for _, address := range []string{"127.0.0.1:8008", "127.0.0.1:0"} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		address = listener.Addr().String()
		return address, listener.Close()
	}
	return "", errors.New("no port is free on loopback")
}

// server is this program running as a Dendrite.
type server struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of the process, once exited is closed
}

func startServer(site *site, address string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(site.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the process has a handle of its own
	cmd := exec.Command(self, "-config", filepath.Join(site.dir, "dendrite.yaml"), "-http-bind-address", address)
	cmd.Stdout, cmd.Stderr = log, log
	// An interrupt from the terminal is for the quickstart, which then stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err = cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, exited: make(chan struct{})}
	go func() {
		s.err = cmd.Wait()
		close(s.exited)
	}()
	return s, nil
}

// stop ends the server as an operator would, and waits for it. It may be called twice.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	return s.err
}
