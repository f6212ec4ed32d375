package storagetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func moverTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"present":                       movePresent,
		"import":                        moveImport,
		"import: in many parts":         moveImportMany,
		"import: what can't be read":    moveImportUnreadable,
		"import: broken off":            moveImportBrokenOff,
		"import: positions taken":       moveImportTaken,
		"import: nothing":               moveImportNothing,
		"export":                        moveExport,
		"export: in many parts":         moveExportMany,
		"export: shared positions":      moveExportShared,
		"export: positions taken":       moveExportTaken,
		"export: broken off":            moveExportBrokenOff,
		"export: late":                  moveExportLate,
		"outbox":                        moveOutbox,
		"outbox: in many parts":         moveOutboxMany,
		"outbox: broken off":            moveOutboxBrokenOff,
		"there and back":                moveThereAndBack,
		"stopped":                       moveStopped,
		"one transaction or none":       moveShared,
		"one transaction or none: EDUs": moveSharedOutbox,
	}
}

func noProgress(int, int) {}

// waits adds a message for the device to the host's queue.
func (q *foreign) waits(position types.Position, device types.Device) types.Message {
	m := types.Message{
		Position: position, Sender: sender, Type: eventType, Content: fmt.Appendf(nil, `{"position":%d,"é":"<&> "}`, position),
	}
	q.rows = append(q.rows, storage.Queued{Device: device, Message: m})
	return m
}

func (f *fixture) wantHeld(want int) {
	f.Helper()
	if held, err := f.store.Held(f.ctx); err != nil || held != want {
		f.Fatalf("the store holds %d messages (error %v), want %d", held, err, want)
	}
}

func (f *fixture) wantImported(want types.Position) {
	f.Helper()
	if imported, err := f.store.Imported(f.ctx); err != nil || imported != want {
		f.Errorf("imported was up to %d (error %v), want %d", imported, err, want)
	}
}

func (f *fixture) imported(q *foreign, want storage.Imported) {
	f.Helper()
	got, err := f.store.Import(f.ctx, q, noProgress)
	f.must(err)
	if got != want {
		f.Fatalf("the import did %+v, want %+v", got, want)
	}
}

func (f *fixture) exported(q *foreign, want storage.Exported) {
	f.Helper()
	got, err := f.store.Export(f.ctx, q, noProgress)
	f.must(err)
	if got != want {
		f.Fatalf("the export did %+v, want %+v", got, want)
	}
}

func (f *fixture) exportedEDUs(q *foreign, want storage.ExportedEDUs) {
	f.Helper()
	got, err := f.store.ExportOutbox(f.ctx, foreignLines{q}, noProgress)
	f.must(err)
	if got != want {
		f.Fatalf("the export did %+v, want %+v", got, want)
	}
}

func movePresent(f *fixture) {
	if there, err := f.store.Present(f.ctx); err != nil || !there {
		f.Errorf("the tables are there: %t, error %v", there, err)
	}
}

func moveImport(f *fixture) {
	own := f.send(alice, 1)
	f.wantImported(0)
	q := f.foreign()
	first, other, second := q.waits(3, alice), q.waits(4, bob), q.waits(900, alice)
	f.imported(q, storage.Imported{Messages: 3, Through: 900})
	f.wantMessages(alice, append([]types.Message{first, second}, own...))
	f.wantMessages(bob, []types.Message{other})
	f.wantHeld(4)
	if len(q.rows) > 0 {
		f.Errorf("%d rows are left in the host's queue", len(q.rows))
	}
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
	f.wantImported(900)
	q.waits(5, bob)
	f.imported(q, storage.Imported{Messages: 1, Through: 5})
	f.imported(q, storage.Imported{})
	f.wantImported(900)
}

func moveImportMany(f *fixture) {
	q := f.foreign()
	var want []types.Message
	for i := range types.Position(2500) {
		want = append(want, q.waits(2*i+1, alice))
	}
	q.rows[1200].Content = []byte(`{"large":"` + strings.Repeat("x", 6<<20) + `"}`)
	want[1200].Content = q.rows[1200].Content
	var reports [][2]int
	got, err := f.store.Import(f.ctx, q, func(done, total int) { reports = append(reports, [2]int{done, total}) })
	f.must(err)
	if got.Messages != 2500 || got.Through != 4999 {
		f.Errorf("the import did %+v", got)
	}
	f.wantMessages(alice, want)
	if len(reports) < 2 || reports[len(reports)-1] != [2]int{2500, 2500} || reports[0][0] >= 2500 || reports[0][1] != 2500 {
		f.Errorf("the progress was %v", reports)
	}
}

func moveImportUnreadable(f *fixture) {
	q := f.foreign()
	long := types.Device{UserID: "@" + strings.Repeat("x", storage.MaxKeyBytes) + ":example.org", DeviceID: "LONG"}
	good := q.waits(5, alice)
	q.waits(1, types.Device{UserID: "@nul\x00:example.org", DeviceID: "A"})
	q.waits(2, types.Device{UserID: "@bob:example.org", DeviceID: "\xff"})
	q.waits(3, long)
	q.waits(4, alice)
	q.rows[len(q.rows)-1].Sender = "" // holds no message
	for i, spoil := range []func(*storage.Queued){
		func(m *storage.Queued) { m.Sender += "\x00" },
		func(m *storage.Queued) { m.Type = "\xff" },
		func(m *storage.Queued) { m.Content = []byte("{\"\xff\":1}") },
		func(m *storage.Queued) { m.Position = 1<<62 + 1 },
	} {
		q.waits(types.Position(i)+6, bob)
		spoil(&q.rows[len(q.rows)-1])
	}
	last := q.waits(20, bob)
	for _, page := range []int{0, 1} {
		q.page = page
		left := slices.Clone(q.rows)
		want := storage.Imported{Messages: 2, Unreadable: 8, Through: 20}
		if page == 1 { // once more
			want = storage.Imported{Unreadable: 8}
		}
		f.imported(q, want)
		f.wantMessages(alice, []types.Message{good})
		f.wantMessages(bob, []types.Message{last})
		if len(q.rows) != 8 {
			f.Errorf("%d rows are left, want the 8 that can't be read: %v", len(q.rows), left)
		}
	}
}

// What a move between two databases that broke off left in both is one message, not two.
func moveImportBrokenOff(f *fixture) {
	q := f.foreign()
	first, other := q.waits(1, alice), q.waits(2, bob)
	q.failRemove = errForeign
	if _, err := f.store.Import(f.ctx, q, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	if len(q.rows) != 2 {
		f.Fatalf("%d rows are in the host's queue, want 2", len(q.rows))
	}
	f.wantMessages(alice, []types.Message{first})
	second := q.waits(3, alice)
	q.failRemove = nil
	f.imported(q, storage.Imported{Messages: 3, Through: 3})
	f.wantMessages(alice, []types.Message{first, second})
	f.wantMessages(bob, []types.Message{other})
	if len(q.rows) > 0 {
		f.Errorf("%d rows are left in the host's queue", len(q.rows))
	}
}

// The host's sequence was set back: what has another message's place stays with the host.
func moveImportTaken(f *fixture) {
	q := f.foreign()
	first, other := q.waits(1, alice), q.waits(2, alice)
	f.imported(q, storage.Imported{Messages: 2, Through: 2})
	for i, spoil := range []func(*storage.Queued){
		func(m *storage.Queued) { m.Content = []byte(`{"another":"message"}`) },
		func(m *storage.Queued) { m.Sender = "@mallory:example.org" },
		func(m *storage.Queued) { m.Type = "org.example.other" },
	} {
		q.rows = nil
		q.waits(1, alice)
		spoil(&q.rows[0])
		kept := q.rows[0]
		q.waits(2, alice) // the same message as before, but for white space
		q.rows[1].Content = append([]byte("{ "), q.rows[1].Content[1:]...)
		another := q.waits(3+types.Position(i), bob)
		f.imported(q, storage.Imported{Messages: 2, Unreadable: 1, Through: another.Position})
		f.wantMessages(alice, []types.Message{first, other})
		f.same(q.of(alice), []types.Message{kept.Message})
		if len(q.rows) != 1 {
			f.Errorf("%d rows are left in the host's queue, want 1", len(q.rows))
		}
	}
}

func moveImportNothing(f *fixture) {
	want := f.send(alice, 2)
	q := f.foreign()
	f.imported(q, storage.Imported{})
	f.wantMessages(alice, want)
}

func moveExport(f *fixture) {
	toAlice, toBob := f.send(alice, 2), f.send(bob, 1)
	q := f.foreign()
	q.raised = 5
	f.exported(q, storage.Exported{Messages: 3, Devices: 2})
	f.same(q.of(alice), toAlice)
	f.same(q.of(bob), toBob)
	f.wantMessages(alice, nil)
	f.wantHeld(0)
	if q.raised < f.last {
		f.Errorf("the host goes on at %d, but %d was handed out", q.raised, f.last)
	}
	f.exported(q, storage.Exported{})
	f.same(q.of(alice), toAlice)

	q.raised = f.last + 1000
	f.exported(q, storage.Exported{})
	if q.raised != f.last+1000 {
		f.Errorf("the host went back to %d", q.raised)
	}
	// A server that has lost its lock without noticing stores nothing more.
	if err := f.store.Commit(f.ctx, f.batch([]storage.Delivery{delivery(`{}`, alice)})); !errors.Is(err, storage.ErrFenced) {
		f.Errorf("a commit after the export ended with %v", err)
	}
	if state, err := f.store.State(f.ctx); err != nil || state.Last != f.last {
		f.Errorf("the last position is %d (error %v), want %d", state.Last, err, f.last)
	}
}

// The host ran without the module and gave out positions of its own: what the module still has comes after those.
func moveExportLate(f *fixture) {
	toAlice, toBob := f.send(alice, 3), f.send(bob, 1)
	q := f.foreign()
	q.given = f.last + 500
	given := q.given
	own := q.waits(q.given, alice)
	f.exported(q, storage.Exported{Messages: 4, Devices: 2, Renumbered: 4})
	got := slices.Concat(q.of(alice)[1:], q.of(bob))
	f.same(q.of(alice)[:1], []types.Message{own})
	for i, want := range append(toAlice, toBob...) {
		if got[i].Position <= given || got[i].Position > q.raised {
			f.Errorf("position %d became %d; the host gave %d, and goes on at %d", want.Position, got[i].Position, given, q.raised)
		}
		want.Position = got[i].Position
		f.same(got[i:i+1], []types.Message{want})
	}
	// What was taken over from the host before is no sign that it ran since.
	f.claim()
	messages := f.send(alice, 1)
	q.rows, q.given = nil, f.last
	f.exported(q, storage.Exported{Messages: 1, Devices: 1})
	f.same(q.of(alice), messages)
}

func moveExportMany(f *fixture) {
	var want [2][]types.Message
	for i := range 4 {
		want[i%2] = append(want[i%2], f.send([]types.Device{alice, bob}[i%2], 700)...)
	}
	large := delivery(`{"large":"`+strings.Repeat("x", 6<<20)+`"}`, bob)
	deliveries := []storage.Delivery{large}
	f.commit(f.batch(deliveries))
	want[1] = append(want[1], sent(deliveries)...)
	var reports [][2]int
	q := f.foreign()
	_, err := f.store.Export(f.ctx, q, func(done, total int) { reports = append(reports, [2]int{done, total}) })
	f.must(err)
	f.same(q.of(alice), want[0])
	f.same(q.of(bob), want[1])
	if len(reports) < 3 || reports[len(reports)-1] != [2]int{2801, 2801} || reports[0][1] != 2801 {
		f.Errorf("the progress was %v", reports)
	}
}

// Older versions gave all copies of a delivery one position, so that devices share it.
func moveExportShared(f *fixture) {
	carol := types.Device{UserID: "@carol:example.org", DeviceID: "TABLET"}
	older := f.foreign()
	var want = map[types.Device][]types.Message{}
	for _, position := range []types.Position{10, 11, 50} {
		for _, device := range []types.Device{alice, bob, carol} {
			want[device] = append(want[device], older.waits(position, device))
		}
	}
	f.imported(older, storage.Imported{Messages: 9, Through: 50})
	q := f.foreign()
	f.exported(q, storage.Exported{Messages: 9, Devices: 3, Renumbered: 7})
	seen := make(map[types.Position]bool)
	for device, messages := range want {
		got := q.of(device)
		for i := range got {
			if position := got[i].Position; position < messages[i].Position || seen[position] {
				f.Errorf("position %d became %d", messages[i].Position, position)
			}
			seen[got[i].Position] = true
			messages[i].Position = got[i].Position
		}
		f.same(got, messages)
	}
	for position := range seen {
		if position > q.raised {
			f.Errorf("the host gives %d out again", position)
		}
	}
}

func moveExportTaken(f *fixture) {
	messages := f.send(alice, 3)
	q := f.foreign()
	other := q.waits(messages[1].Position, bob)
	f.exported(q, storage.Exported{Messages: 3, Devices: 1, Renumbered: 1})
	f.same(q.of(bob), []types.Message{other})
	got := q.of(alice)
	if len(got) != 3 || got[2].Position <= f.last || got[2].Position > q.raised {
		f.Fatalf("the host holds %+v and goes on at %d", got, q.raised)
	}
	messages[1].Position = got[2].Position
	f.same(got, []types.Message{messages[0], messages[2], messages[1]})
}

func moveExportBrokenOff(f *fixture) {
	messages := f.send(alice, 2)
	q := f.foreign()
	q.failInsert = errForeign
	if _, err := f.store.Export(f.ctx, q, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	f.wantMessages(alice, messages)
	if len(q.rows) > 0 {
		f.Fatalf("%d rows are in the host's queue", len(q.rows))
	}
	q.failInsert, q.failCommit = nil, errForeign
	if _, err := f.store.Export(f.ctx, q, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	f.wantMessages(alice, messages)
	f.same(q.of(alice), messages)
	q.failCommit = nil
	f.exported(q, storage.Exported{Messages: 2, Devices: 1})
	f.same(q.of(alice), messages)
	f.wantHeld(0)
}

func moveOutbox(f *fixture) {
	here, there := f.queue(remote, 4), f.queue(elsewhere, 2)
	f.refuse(here[1], moment(1<<40))
	f.refuse(here[2], never)
	q := f.foreign()
	f.exportedEDUs(q, storage.ExportedEDUs{EDUs: 4, Destinations: 2, Refused: 1, SetAside: 1})
	f.sameEDUs(q.lines[remote], []storage.EDU{here[0], here[3]})
	f.sameEDUs(q.lines[elsewhere], there)
	f.wantLine(remote, nil)
	f.wantLine(elsewhere, nil)
	f.exportedEDUs(q, storage.ExportedEDUs{Refused: 1, SetAside: 1})
}

func moveOutboxMany(f *fixture) {
	line := f.queue(remote, 2500)
	large := edu(remote, `{"large":"`+strings.Repeat("x", 6<<20)+`"}`)
	large.MessageID = "large"
	batch := f.eduBatch(large)
	f.commit(batch)
	q := f.foreign()
	f.exportedEDUs(q, storage.ExportedEDUs{EDUs: 2501, Destinations: 1})
	f.sameEDUs(q.lines[remote], append(line, batch.EDUs...))
	f.wantLine(remote, nil)
}

func moveOutboxBrokenOff(f *fixture) {
	line := f.queue(remote, 2500)
	q := f.foreign()
	q.failCommit = errForeign
	if _, err := f.store.ExportOutbox(f.ctx, foreignLines{q}, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	moved := len(q.lines[remote])
	f.wantLine(remote, line)
	if moved == 0 || moved == len(line) {
		f.Fatalf("%d EDUs were moved before it broke off", moved)
	}
	q.failCommit = nil
	f.exportedEDUs(q, storage.ExportedEDUs{EDUs: 2500, Destinations: 1, Known: moved})
	f.sameEDUs(q.lines[remote], line)
	f.wantLine(remote, nil)

	// A version that moves more at once may have broken off.
	line = f.queue(elsewhere, 2500)
	q.lines[elsewhere] = slices.Clone(line[:1500])
	f.exportedEDUs(q, storage.ExportedEDUs{EDUs: 2500, Destinations: 1, Known: 1500})
	f.sameEDUs(q.lines[elsewhere], line)
}

func moveThereAndBack(f *fixture) {
	want := f.send(alice, 3)
	q := f.foreign()
	for range 3 {
		f.exported(q, storage.Exported{Messages: 3, Devices: 1})
		f.same(q.of(alice), want)
		f.imported(q, storage.Imported{Messages: 3, Through: want[2].Position})
		f.wantMessages(alice, want)
	}
}

// A move ends between two parts, and has done nothing then.
func moveStopped(f *fixture) {
	want := f.send(alice, 1500)
	stopped := func(move func(context.Context, storage.Progress) error) {
		f.Helper()
		ctx, cancel := context.WithCancel(f.ctx)
		defer cancel()
		f.mustBe(move(ctx, func(int, int) { cancel() }), context.Canceled)
	}
	for _, shared := range []bool{true, false} {
		q := f.foreign()
		q.shared = shared
		stopped(func(ctx context.Context, progress storage.Progress) error {
			_, err := f.store.Export(ctx, q, progress)
			return err
		})
		f.wantMessages(alice, want)
		if !shared && len(q.rows) > 0 {
			f.Errorf("%d rows are in the host's queue", len(q.rows))
		}
		q.rows = nil
		for i := range types.Position(1500) {
			q.waits(i+1, bob)
		}
		stopped(func(ctx context.Context, progress storage.Progress) error {
			_, err := f.store.Import(ctx, q, progress)
			return err
		})
		f.wantMessages(bob, nil)
		if len(q.rows) != 1500 {
			f.Errorf("%d rows are in the host's queue", len(q.rows))
		}
	}
}

// Within one database what the host's part of a move refuses undoes the store's part.
func moveShared(f *fixture) {
	want := f.send(alice, 2)
	q := f.foreign()
	q.shared = true
	waiting := q.waits(1, bob)
	rows := slices.Clone(q.rows)
	q.failRemove, q.failInsert = errForeign, errForeign
	if _, err := f.store.Import(f.ctx, q, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	f.wantMessages(bob, nil)
	if _, err := f.store.Export(f.ctx, q, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	f.wantMessages(alice, want)
	q.rows, q.failRemove, q.failInsert = rows, nil, nil
	f.imported(q, storage.Imported{Messages: 1, Through: 1})
	f.wantMessages(bob, []types.Message{waiting})
	f.exported(q, storage.Exported{Messages: 3, Devices: 2})
	f.same(q.of(bob), []types.Message{waiting})
	if q.transactions > 0 {
		f.Error("the host's queue had transactions of its own")
	}
}

func moveSharedOutbox(f *fixture) {
	line := f.queue(remote, 2)
	q := f.foreign()
	q.shared, q.failInsert = true, errForeign
	if _, err := f.store.ExportOutbox(f.ctx, foreignLines{q}, noProgress); !errors.Is(err, errForeign) {
		f.Fatalf("the error is %v", err)
	}
	f.wantLine(remote, line)
	q.failInsert = nil
	delete(q.lines, remote)
	f.exportedEDUs(q, storage.ExportedEDUs{EDUs: 2, Destinations: 1})
	f.sameEDUs(q.lines[remote], line)
	if q.transactions > 0 {
		f.Error("the host's queue had transactions of its own")
	}
}
