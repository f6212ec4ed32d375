// Command dendrite-todevice is Dendrite with the send-to-device module compiled in. It takes the flags and
// the dendrite.yaml of Dendrite; while the section to_device is missing or not enabled it is
// Dendrite. The subcommand quickstart sets up a server to try it on, and to-device is for who looks after one.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/matrix-org/dendrite/setup"
	"github.com/sirupsen/logrus"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "quickstart" {
		if err := quickstart(os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "quickstart: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "to-device" {
		os.Exit(toDevice(os.Args[2:], standardTerminal()))
	}
	flags := addServerFlags(flag.CommandLine)
	flag.Usage = usage
	flag.Parse()
	if name := misplaced(flag.Args()); name != "" {
		fmt.Fprintf(os.Stderr, "%s is a subcommand, and goes before every flag: dendrite-todevice %[1]s ...\n", name)
		os.Exit(exitUsage)
	}
	cfg := setup.ParseFlags(true)
	configPath := flag.Lookup("config").Value.String()
	if err := serve(cfg, configPath, flags); err != nil {
		logrus.WithError(err).Fatal("The server has failed")
	}
}

// misplaced returns the subcommand among the arguments that follow the server's flags. The host passes over all others there.
func misplaced(args []string) string {
	for _, name := range []string{"quickstart", "to-device"} {
		if slices.Contains(args, name) {
			return name
		}
	}
	return ""
}

func usage() {
	fmt.Fprintln(flag.CommandLine.Output(), `Usage:
  dendrite-todevice [flags]              run the server
  dendrite-todevice quickstart [flags]   set up a server to try it on; -h tells more
  dendrite-todevice to-device ...        look after send-to-device messages; -h tells more

Flags of the server:`)
	flag.PrintDefaults()
}
