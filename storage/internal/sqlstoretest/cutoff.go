package sqlstoretest

import (
	"database/sql"
	"strconv"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// CutOff has changes of what stands aside fail after their first transaction, and wants to be told what that has changed. The
// statements have the database refuse any change of the EDU with the ID "faulty".
func CutOff(t *testing.T, db *sql.DB, store storage.Store, statements ...string) {
	const (
		destination = "remote"
		kept        = 1200
		faulty      = 1100
		first       = 1000 // of one transaction
	)
	ctx := t.Context()
	must(t, store.Migrate(ctx))
	last, err := store.Claim(ctx, "writer", 0)
	must(t, err)
	batch := storage.Batch{Writer: "writer", Previous: last, Last: last + kept}
	for n := range kept {
		edu := storage.EDU{Destination: destination, Position: last + types.Position(n) + 1, MessageID: strconv.Itoa(n), Content: []byte(`{}`)}
		if n == faulty {
			edu.MessageID = "faulty"
		}
		batch.EDUs = append(batch.EDUs, edu)
	}
	must(t, store.Commit(ctx, batch))
	for _, edu := range batch.EDUs {
		must(t, store.Refuse(ctx, storage.Refusal{EDU: edu, Attempts: 1}))
	}
	for _, statement := range statements {
		_, err = db.ExecContext(ctx, statement)
		must(t, err)
	}
	readmitted, err := store.Readmit(ctx, destination, 0, time.Now())
	if err == nil || readmitted != first {
		t.Errorf("%d EDUs were readmitted (%v), want %d and an error", readmitted, err, first)
	}
	if line, err := store.Line(ctx, destination); err != nil || line.Refused != first || line.SetAside != kept-first {
		t.Errorf("the line is %+v (%v)", line, err)
	}
	discarded, err := store.Discard(ctx, destination, 0)
	if err == nil || len(discarded) != first {
		t.Fatalf("%d EDUs were discarded (%v), want %d and an error", len(discarded), err, first)
	}
	for n, gone := range discarded {
		if gone.Position != batch.EDUs[n].Position || gone.MessageID != batch.EDUs[n].MessageID {
			t.Fatalf("EDU %d discarded is %+v", n, gone)
		}
	}
	if line, err := store.Line(ctx, destination); err != nil || line.Refused+line.SetAside != kept-first {
		t.Errorf("the line is %+v (%v)", line, err)
	}
}
