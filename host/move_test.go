package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/handover"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// run has the module run for a moment at a time of the clock, and returns the last position that it left behind.
func (f *foreignFixture) run(now time.Time) (last types.Position) {
	f.Helper()
	h := handover.New(handover.Options{
		Store: f.store, Queue: f.queue, Log: quietLog(), Last: func() types.Position { return last }, Now: func() time.Time { return now },
	})
	atLeast, err := h.Prepare(f.Context())
	f.must(err)
	last, err = f.store.Claim(f.Context(), "module", max(atLeast, types.Position(now.UnixMicro())))
	f.must(err)
	f.must(h.Start(f.Context()))
	h.Stop(f.Context())
	return last
}

// commit stores a message for bob after the position last.
func (f *foreignFixture) commit(last types.Position) error {
	return f.store.Commit(f.Context(), storage.Batch{Writer: "module", Previous: last, Last: last + 1, Deliveries: []storage.Delivery{{
		Position: last + 1, Sender: "@alice:test", Type: "m.test",
		Copies: []storage.Copy{{Device: types.Device{UserID: "@bob:test", DeviceID: "PHONE"}, Content: []byte(`{}`)}},
	}}})
}

func (f *foreignFixture) export() (ExportReport, error) {
	section := todevicemodule.DefaultConfig()
	section.Database = f.section
	return Export(f.Context(), f.d.config, section, ExportOptions{Force: true, Log: quietLog()})
}

// synced has the host do what its /sync does with bob's since: delete what that covers, and read what comes after it.
func (f *foreignFixture) synced(since types.Position) (messages int) {
	f.Helper()
	f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
		if err := f.host.DeleteSendToDeviceMessages(ctx, tx, "@bob:test", "PHONE", synctypes.StreamPosition(since)); err != nil {
			return err
		}
		_, events, err := f.host.SelectSendToDeviceMessages(ctx, tx, "@bob:test", "PHONE", synctypes.StreamPosition(since), 1<<62)
		messages = len(events)
		return err
	}))
	return messages
}

// The host goes on from where the module left its sequence: its positions look like times of the module's last run.
func TestAgeOfWhatTheHostStoredIsNotKnown(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		f.run(time.Now().Add(-90 * 24 * time.Hour))
		position := f.sent("@bob:test", `{}`)
		last := f.run(time.Now())
		if imported, err := f.store.Imported(f.Context()); err != nil || imported != position || last < imported {
			f.Errorf("imported was up to %d (error %v), want %d, and the module goes on after %d", imported, err, position, last)
		}
	})
}

// Switched off without an export, which comes only after bob's client has gone on with the host.
func TestLateExportIsNotDeletedUnread(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		f.must(f.commit(f.run(time.Now())))
		since := f.sent("@bob:test", `{}`)
		if n := f.synced(since); n != 0 {
			f.Fatalf("bob gets %d messages that he has", n)
		}
		report, err := f.export()
		f.must(err)
		if report.Queues != (storage.Exported{Messages: 1, Devices: 1, Renumbered: 1}) {
			f.Errorf("the export reports %+v", report.Queues)
		}
		if n := f.synced(since); n != 1 {
			f.Errorf("bob gets %d messages, want the one that was exported", n)
		}
	})
}

// A server that has lost its lock without noticing commits while an export is under way: its message is refused, not deleted.
func TestExportFencesTheServer(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		last := f.run(time.Now())
		f.must(f.commit(last))
		commits := make(chan error, 1)
		exported, err := f.store.Export(f.Context(), f.queue, func(int, int) {
			go func() { commits <- f.commit(last + 1) }() // which waits for the export
		})
		f.must(err)
		if err = <-commits; !errors.Is(err, storage.ErrFenced) {
			f.Errorf("the commit beside the export ended with %v", err)
		}
		if rows := f.rows(); exported.Messages != 1 || rows != 1 {
			f.Errorf("exported were %+v, and the host has %d messages", exported, rows)
		}
	})
}

// The section's own database is missing in the configuration: an export must not say that there is nothing.
func TestExportLooksWhereTheModuleWas(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		f.must(f.commit(f.run(time.Now())))
		own := f.section.ConnectionString != ""
		f.section.ConnectionString = ""
		if _, err := f.export(); errors.Is(err, ErrElsewhere) != own || !own && err != nil {
			f.Errorf("the export ended with %v", err)
		}
	})
}

// A host on which the module has never run has nothing to export, whatever its sequence has come to.
func TestExportFromAHostWithoutTheModule(t *testing.T) {
	for _, messages := range []int{0, 3} {
		t.Run(fmt.Sprint(messages), func(t *testing.T) {
			onBothDatabases(t, func(f *foreignFixture) {
				if f.section.ConnectionString == "" {
					return // the fixture has made the module's tables there
				}
				for range messages {
					f.sent("@bob:test", `{}`)
				}
				f.section.ConnectionString = ""
				if report, err := f.export(); err != nil || !report.Nothing {
					f.Errorf("the export reports %+v, error %v", report, err)
				}
			})
		})
	}
}
