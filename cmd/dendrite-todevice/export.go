package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/matrix-org/dendrite/setup/config"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/host"
)

// exportOptions are the flags of the subcommand export.
type exportOptions struct {
	host.ExportOptions
	JSON bool
}

// export moves what waits back into the tables of an unmodified Dendrite and prints what it did; see host.Export.
func export(ctx context.Context, cfg *config.Dendrite, section todevicemodule.Config, options exportOptions, out io.Writer) (host.ExportReport, error) {
	report, err := host.Export(ctx, cfg, section, options.ExportOptions)
	if err != nil {
		return report, err
	}
	if options.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return report, encoder.Encode(report)
	}
	return report, printReport(out, report)
}

func printReport(out io.Writer, r host.ExportReport) error {
	if r.Nothing {
		_, err := fmt.Fprintln(out, "There is nothing to export: the module has never run on this database.")
		return err
	}
	_, err := fmt.Fprintf(out, "Moved %d messages for %d devices, and %d EDUs for %d servers.\n",
		r.Queues.Messages, r.Queues.Devices, r.Outbox.EDUs, r.Outbox.Destinations)
	if err == nil && r.Queues.Renumbered > 0 {
		_, err = fmt.Fprintf(out, "%d of the messages have new positions, since Dendrite has given theirs out without the module, or an older version gave one to several. "+
			"What a client got without acknowledging it may come once more.\n", r.Queues.Renumbered)
	}
	if err == nil && r.Outbox.Known > 0 {
		_, err = fmt.Fprintf(out, "%d of the EDUs were in Dendrite's queue already.\n", r.Outbox.Known)
	}
	if err == nil && r.Outbox.Refused+r.Outbox.SetAside > 0 {
		_, err = fmt.Fprintf(out, "Left in todevice_refused, since one of them would hold up Dendrite's queue: %d refused EDUs that were to be tried again, %d that were set aside.\n",
			r.Outbox.Refused, r.Outbox.SetAside)
	}
	if err == nil {
		_, err = fmt.Fprintln(out, "Dendrite can be started without the module now.")
	}
	return err
}
