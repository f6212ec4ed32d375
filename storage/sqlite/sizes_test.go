package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
)

// SQLite takes the size of a content from the head of its row where the last operand of the instruction that fetches the
// column says so. Otherwise it reads the content, on as many pages as that may fill.
func TestSizesOfContents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	var table int
	if err := db.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = 'todevice_messages'`).Scan(&table); err != nil {
		t.Fatal(err)
	}
	for statement, args := range map[string][]any{
		sqlite.ExcessStatement:                                            {"@alice:x", "A", 1, 2},
		sqlite.QueuesBySizeStatement:                                      {1, "", "", 10},
		sqlite.QueuesByAgeStatement:                                       {1, "", "", 10},
		`SELECT octet_length(content) FROM todevice_messages`:             nil,
		`SELECT length(content), content FROM todevice_messages -- reads`: nil,
	} {
		const content, onlyItsBytes = 5, 0xc0 // the number of the column, and OPFLAG_BYTELENARG of SQLite
		fetched, read := 0, 0
		cursors := map[int]bool{} // those that stand on a row of the table
		for _, i := range program(t, db, statement, args) {
			switch {
			case i.opcode == "OpenRead":
				cursors[i.operands[0]] = i.operands[1] == table
			case i.opcode == "Column" && cursors[i.operands[0]] && i.operands[1] == content:
				fetched++
				if i.operands[4]&onlyItsBytes != onlyItsBytes {
					read++
				}
			}
		}
		if fetched == 0 || (read > 0) != strings.HasSuffix(statement, "reads") {
			t.Errorf("%d of %d instructions read the content in%s", read, fetched, statement)
		}
	}
}

// Every message is met in the index alone.
func TestQueuesAreCountedInTheIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	for statement, args := range map[string][]any{
		sqlite.TotalsStatement:       nil,
		sqlite.QueuesBySizeStatement: {1, "", "", 10},
		sqlite.QueuesByAgeStatement:  {1, "", "", 10},
		sqlite.CountsBySizeStatement: {1, "", "", 10},
		sqlite.CountsByAgeStatement:  {1, "", "", 10},
	} {
		text := plan(t, db, statement, args)
		if !strings.Contains(text, "SCAN todevice_messages USING COVERING INDEX") || strings.Contains(text, "TEMP B-TREE FOR GROUP BY") {
			t.Errorf("the plan of%s\nis\n%s", statement, text)
		}
	}
}

// Who only counts never reads a page of the table: one queue may fill most of it.
func TestCountingReadsTheIndexAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	const reads = "SEARCH m USING INDEX"
	for _, statement := range []string{sqlite.CountsBySizeStatement, sqlite.CountsByAgeStatement} {
		if text := plan(t, db, statement, []any{1, "", "", 10}); strings.Contains(text, reads) {
			t.Errorf("the plan of%s\nis\n%s", statement, text)
		}
	}
	if text := plan(t, db, sqlite.QueuesBySizeStatement, []any{1, "", "", 10}); !strings.Contains(text, reads) {
		t.Errorf("the sizes are not known from the index alone, but the plan is\n%s", text)
	}
}

type instruction struct {
	opcode   string
	operands [5]int // but the fourth
}

func program(t *testing.T, db *sql.DB, statement string, args []any) (program []instruction) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN "+statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck
	for rows.Next() {
		var i instruction
		var address, fourth, comment any
		o := &i.operands
		if err = rows.Scan(&address, &i.opcode, &o[0], &o[1], &o[2], &fourth, &o[4], &comment); err != nil {
			t.Fatal(err)
		}
		program = append(program, i)
	}
	if err = rows.Err(); err != nil {
		t.Fatal(err)
	}
	return program
}
