package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/setup/config"
	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule/host"
)

const openRegistrationFlag = "really-enable-open-registration"

func checkConfigCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "check-config",
		Usage:     "look for faults in dendrite.yaml without starting the server",
		UsageText: "to-device check-config [flags]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: openRegistrationFlag, Usage: "the server is started with this flag"},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if _, err := arguments(cmd, 0); err != nil {
				return err
			}
			name := cmd.String(configFlag)
			res := configFaults(name, cmd.Bool(openRegistrationFlag))
			err := t.show(cmd, res, func() {
				for _, fault := range res.Faults {
					fmt.Fprintln(t.out, fault)
				}
				if len(res.Faults) == 0 {
					fmt.Fprintf(t.out, "%s has no faults. to_device is %s.\n", name, map[bool]string{true: "enabled", false: "not enabled"}[res.Enabled])
				}
			})
			if err == nil && len(res.Faults) > 0 {
				err = exit(exitUsage, "%s has %d faults", name, len(res.Faults))
			}
			return err
		},
	}
}

type configReport struct {
	Enabled bool     `json:"enabled"`
	Faults  []string `json:"faults"`
}

// configFaults returns every fault that keeps the server from starting with a configuration. Dendrite takes a flag of its own for
// open registration.
func configFaults(name string, openRegistration bool) configReport {
	cfg, err := config.Load(name)
	if err == nil {
		cfg.ClientAPI.OpenRegistrationWithoutVerificationEnabled = openRegistration
		err = verify(cfg)
	}
	section, sectionErr := host.ReadConfig(name)
	res := configReport{Enabled: section.Enabled, Faults: []string{}}
	for _, fault := range []error{err, sectionErr} {
		if fault == nil {
			continue
		}
		for line := range strings.Lines(fault.Error()) {
			if line = strings.TrimSpace(line); line != "" && !slices.Contains(res.Faults, line) {
				res.Faults = append(res.Faults, line)
			}
		}
	}
	return res
}
