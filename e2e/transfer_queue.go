package e2e

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// SwitchTo stops the server, unless it is stopped, and starts it on the same data with other options: as
// unmodified Dendrite or with the module.
func (s *Server) SwitchTo(t testing.TB, o Options) {
	t.Helper()
	s.stopAnd(t, o)
	s.MustStart(t)
}

func (s *Server) stopAnd(t testing.TB, o Options) {
	t.Helper()
	if s.running() {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.binary, err = o.binary(); err != nil {
		t.Fatal(err)
	}
	if err = writeJSON(s.path("dendrite.yaml"), s.config(o)); err != nil {
		t.Fatal(err)
	}
}

// ownDatabase returns the options of a module that keeps its messages in a database of its own.
func ownDatabase(t testing.TB, s *Server) Options {
	t.Helper()
	connection := "file:" + filepath.Join(s.home, "todevice.db")
	if s.Backend == Postgres {
		connection = pgtest.NewDatabase(t)
	}
	return Options{ToDevice: object{"database": object{"connection_string": connection}}}
}

// answers tells whether the server answers a client.
func (s *Server) answers() bool {
	res, err := http.Get(s.URL + "/_matrix/client/versions")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// exportReport is what the subcommand export prints.
type exportReport struct {
	Nothing bool
	Queues  struct{ Messages, Devices, Renumbered int }
	Outbox  struct {
		EDUs, Destinations, Known, Refused int
		SetAside                           int `json:"set_aside"`
	}
}

// exportCommand returns the subcommand export with a server's configuration.
func (s *Server) exportCommand(flags ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"to-device", "export", "--config", s.path("dendrite.yaml"), "--json"}, flags...)...)
	cmd.Dir = s.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Export runs the subcommand to its end.
func (s *Server) Export(t testing.TB, flags ...string) exportReport {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := s.exportCommand(flags...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("export: %v\n%s", err, errs.String())
	}
	var report exportReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("export: %v\n%s", err, out.String())
	}
	return report
}

// withDatabase opens the sync API's database while f runs, and no longer: an export refuses while others are connected.
func withDatabase(t testing.TB, s *Server, f func(*sql.DB)) {
	t.Helper()
	db := s.OpenDatabase(t)
	defer db.Close() //nolint:errcheck
	f(db)
}

// tableDigest counts the rows of a query and sums their contents up.
type tableDigest struct {
	Rows   int
	Digest string
}

const (
	// What the host's table and the module's have in common.
	hostRows   = `SELECT id, user_id, device_id FROM syncapi_send_to_device ORDER BY id`
	moduleRows = `SELECT position, user_id, device_id FROM todevice_messages ORDER BY position`
)

// digest reads positions, users and devices.
func digest(t testing.TB, db *sql.DB, query string) tableDigest {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck
	sum := sha256.New()
	var d tableDigest
	for rows.Next() {
		var position int64
		var user, device string
		if err = rows.Scan(&position, &user, &device); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(sum, position, user, device)
		d.Rows++
	}
	if err = rows.Err(); err != nil {
		t.Fatal(err)
	}
	d.Digest = fmt.Sprintf("%x", sum.Sum(nil))
	return d
}

// fillHostQueue puts rows of about 800 bytes into the host's table, for the devices in turn, as unmodified Dendrite
// would have stored them.
func fillHostQueue(t testing.TB, s *Server, rows int, devices []*Client) {
	t.Helper()
	type target struct{ User, Device string }
	targets := make([]target, len(devices))
	for i, c := range devices {
		targets[i] = target{c.UserID.String(), c.DeviceID.String()}
	}
	query := `
		INSERT INTO syncapi_send_to_device (user_id, device_id, content)
		SELECT d ->> 'User', d ->> 'Device', '{"sender":"@sender:localhost","type":"m.room.encrypted","content":{"n":' || n || ',"ciphertext":"' || repeat('x', 700) || '"}}'
		FROM generate_series(0, $1::bigint - 1) AS n
		JOIN jsonb_array_elements($2::jsonb) WITH ORDINALITY AS e (d, i) ON i = n % $3::bigint + 1 ORDER BY n`
	if s.Backend == SQLite {
		query = `
			WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?1),
				targets (i, d) AS MATERIALIZED (SELECT key, value FROM json_each(?2))
			INSERT INTO syncapi_send_to_device (user_id, device_id, content)
			SELECT d ->> 'User', d ->> 'Device', '{"sender":"@sender:localhost","type":"m.room.encrypted","content":{"n":' || n || ',"ciphertext":"' || replace(hex(zeroblob(350)), '0', 'x') || '"}}'
			FROM numbers JOIN targets ON i = n % ?3`
	}
	withDatabase(t, s, func(db *sql.DB) {
		if _, err := db.Exec(query, rows, string(mustJSON(targets)), len(devices)); err != nil {
			t.Fatal(err)
		}
		if s.Backend == Postgres { // a million rows at once leave the planner without a notion of them
			if _, err := db.Exec(`ANALYSE syncapi_send_to_device`); err != nil {
				t.Fatal(err)
			}
		}
	})
}
