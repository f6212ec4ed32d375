package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/host"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func TestPrintReport(t *testing.T) {
	tests := map[string]struct {
		report host.ExportReport
		want   string
	}{
		"nothing": {host.ExportReport{Nothing: true}, "There is nothing to export: the module has never run on this database.\n"},
		"usual": {
			host.ExportReport{
				Queues: storage.Exported{Messages: 7, Devices: 2}, Outbox: storage.ExportedEDUs{EDUs: 5, Destinations: 3},
			},
			"Moved 7 messages for 2 devices, and 5 EDUs for 3 servers.\nDendrite can be started without the module now.\n",
		},
		"everything": {
			host.ExportReport{
				Queues: storage.Exported{Messages: 7, Devices: 2, Renumbered: 4},
				Outbox: storage.ExportedEDUs{EDUs: 5, Destinations: 3, Known: 1, Refused: 6, SetAside: 8},
			},
			"Moved 7 messages for 2 devices, and 5 EDUs for 3 servers.\n" +
				"4 of the messages have new positions, since Dendrite has given theirs out without the module, or an older version gave one to several. " +
				"What a client got without acknowledging it may come once more.\n" +
				"1 of the EDUs were in Dendrite's queue already.\n" +
				"Left in todevice_refused, since one of them would hold up Dendrite's queue: 6 refused EDUs that were to be tried again, 8 that were set aside.\n" +
				"Dendrite can be started without the module now.\n",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := printReport(&out, test.report); err != nil || out.String() != test.want {
				t.Errorf("printed (error %v):\n%s\nwant:\n%s", err, out.String(), test.want)
			}
		})
	}
}

func TestExitCodesOfAnExport(t *testing.T) {
	for failure, want := range map[error]int{
		storage.ErrLocked: exitRunning, host.ErrInUse: exitRunning, host.ErrNoDatabase: exitUsage, host.ErrElsewhere: exitUsage,
	} {
		var coded *exitError
		if err := withExitCode(fmt.Errorf("export: %w", failure)); !errors.As(err, &coded) || coded.code != want || !errors.Is(err, failure) {
			t.Errorf("%v becomes %v, want the exit code %d", failure, err, want)
		}
	}
	for _, err := range []error{nil, storage.ErrTransient} {
		if got := withExitCode(err); got != err { //nolint:errorlint // the very same
			t.Errorf("%v becomes %v", err, got)
		}
	}
}
