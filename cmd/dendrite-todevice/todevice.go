package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/urfave/cli/v3"
)

// Exit codes of the subcommands, for scripts.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2 // or a faulty configuration
	exitRefused     = 3
	exitUnreachable = 4
	exitNotFound    = 5
	exitRunning     = 6
)

const exitCodes = `Exit codes:
   0  done
   1  failed
   2  wrong usage, or the configuration has faults
   3  refused: the access token is wrong, or not an administrator's
   4  the server can't be reached
   5  not found: nothing is known of what was named
   6  a server runs on the database`

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	error
}

func (e *exitError) Unwrap() error { return e.error }

func exit(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

// terminal is where a subcommand reads and prints.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	asks     bool // in is a person's
}

// output remembers the first failure to print: nobody looks at each line of a table.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil {
		err = fmt.Errorf("printing: %w", err)
		o.err = cmp.Or(o.err, err)
	}
	return n, err
}

func standardTerminal() terminal {
	return terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, asks: isatty.IsTerminal(os.Stdin.Fd())}
}

// toDevice runs a subcommand and returns its exit code.
func toDevice(args []string, t terminal) int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	out := &output{Writer: t.out}
	t.out = out
	root := newToDeviceCommand(t)
	root.Metadata = map[string]any{rawArguments: args}
	err := root.Run(ctx, append([]string{"to-device"}, args...))
	if err == nil {
		err = out.err
	}
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(t.err, "to-device: %v\n", err)
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return exitFailed
}

func newToDeviceCommand(t terminal) *cli.Command {
	root := &cli.Command{
		Name:  "to-device",
		Usage: "look after send-to-device messages",
		Description: `Flags may have one dash or two, and go before names: what follows the first name is one too, whatever it looks like. A first
name that begins with a dash goes behind --. Most subcommands ask the running server and take an administrator's access token: from
-token-file, from the environment variable ` + tokenVariable + `, or from the file that to_device.admin.access_token_file in
dendrite.yaml names.

` + exitCodes,
		Writer:         t.out,
		ErrWriter:      t.err,
		HideVersion:    true,
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // toDevice knows the exit codes
		Action: func(_ context.Context, cmd *cli.Command) error {
			if name := cmd.Args().First(); name != "" {
				return exit(exitUsage, "there is no subcommand %q; to-device -h lists them", name)
			}
			return errors.Join(cli.ShowRootCommandHelp(cmd), exit(exitUsage, "a subcommand is missing"))
		},
		Commands: []*cli.Command{
			statusCommand(t), queuesCommand(t), outboxCommand(t), traceCommand(t), purgeCommand(t), retryCommand(t),
			discardCommand(t), exportCommand(t), checkConfigCommand(t),
		},
	}
	onUsageError := func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		return exit(exitUsage, "%w; %s -h tells more", err, cmd.FullName())
	}
	root.OnUsageError = onUsageError
	first := 1
	for _, command := range root.Commands {
		command.OnUsageError = onUsageError
		command.StopOnNthArg = &first  // users choose the IDs of their devices, and may choose one that is a flag
		command.HideHelpCommand = true // a server may be called help, or h
		command.Flags = append(command.Flags, commonFlags()...)
	}
	return root
}

const (
	configFlag = "config"
	jsonFlag   = "json"
	yesFlag    = "yes"
	limitFlag  = "limit"
)

func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: configFlag, Value: "dendrite.yaml", Usage: "the server's configuration `FILE`"},
		&cli.BoolFlag{Name: jsonFlag, Usage: "print JSON instead of tables"},
	}
}

// rawArguments is the key of all arguments in the root's Metadata.
const rawArguments = "arguments"

// arguments returns the arguments of a subcommand, of which there have to be one of the numbers given.
func arguments(cmd *cli.Command, counts ...int) ([]string, error) {
	args := cmd.Args().Slice()
	// The parser leaves out a -- even where it is a name.
	raw, _ := cmd.Root().Metadata[rawArguments].([]string)
	if left := len(raw) - len(args); left < 0 || !slices.Equal(raw[left:], args) {
		return nil, exit(exitUsage, "-- goes before the first name: %s", cmd.UsageText)
	}
	if slices.Contains(args, "") {
		return nil, exit(exitUsage, "a name is empty: %s", cmd.UsageText)
	}
	if !slices.Contains(counts, len(args)) {
		return nil, exit(exitUsage, "wrong number of arguments, or flags behind names: %s", cmd.UsageText)
	}
	return args, nil
}
