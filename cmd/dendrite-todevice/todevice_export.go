package main

import (
	"context"
	"errors"

	"github.com/matrix-org/dendrite/setup/config"
	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule/host"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

const forceFlag = "force"

func exportCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "move what waits back into the tables of an unmodified Dendrite; stop the server before",
		UsageText: "to-device export [flags]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: forceFlag, Usage: "export although others are connected to the PostgreSQL database, none of which is a Dendrite"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if _, err := arguments(cmd, 0); err != nil {
				return err
			}
			name := cmd.String(configFlag)
			cfg, err := config.Load(name)
			if err != nil {
				return exit(exitUsage, "%s: %w", name, err)
			}
			section, err := host.ReadConfig(name)
			if err != nil {
				return exit(exitUsage, "%s: %w", name, err)
			}
			options := exportOptions{ExportOptions: host.ExportOptions{Force: cmd.Bool(forceFlag)}, JSON: cmd.Bool(jsonFlag)}
			_, err = export(ctx, cfg, section, options, t.out)
			return withExitCode(err)
		},
	}
}

// withExitCode gives what keeps an export from beginning its exit code.
func withExitCode(err error) error {
	switch {
	case errors.Is(err, storage.ErrLocked):
		return exit(exitRunning, "%w: stop the server first", err)
	case errors.Is(err, host.ErrNoDatabase), errors.Is(err, host.ErrElsewhere):
		return exit(exitUsage, "%w", err)
	case errors.Is(err, host.ErrInUse):
		return exit(exitRunning, "%w", err)
	}
	return err
}
