package e2e

import (
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// crashRows is how many messages are on their way when a move is killed. It takes seconds to move them.
const crashRows = 60_000

// moving tells whether a process moves messages on the server's databases: it holds the host's table, or has written
// more than it does before and after.
func moving(t *testing.T, s *Server, db *sql.DB, process *os.Process) bool {
	t.Helper()
	if s.Backend == SQLite {
		return written(t, process.Pid) > 8<<20
	}
	var n int
	err := db.QueryRow(`
		SELECT COUNT(*) FROM pg_locks WHERE relation = 'syncapi_send_to_device'::regclass AND mode = 'ExclusiveLock' AND granted`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// written returns how many bytes a process has written.
func written(t *testing.T, pid int) int {
	t.Helper()
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`wchar: (\d+)`).FindSubmatch(io)
	n, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// An import and an export that are killed half way, and run again, lose and double nothing.
func TestKilledMoves(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]func(testing.TB, *Server) Options{
		"same database": func(testing.TB, *Server) Options { return Options{} },
		"own database":  ownDatabase,
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := StartServer(t, b, Options{Unmodified: true})
				var devices []*Client
				for range 20 {
					devices = append(devices, Register(t, s, "receiver"))
				}
				o := options(t, s)
				s.stopAnd(t, o)
				fillHostQueue(t, s, crashRows, devices)
				var before tableDigest
				withDatabase(t, s, func(db *sql.DB) { before = digest(t, db, hostRows) })

				withDatabase(t, s, func(db *sql.DB) {
					if err := s.launch(); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the import is under way", func() (bool, any) { return moving(t, s, db, s.process.Process), s.logTail(0) })
					if err := s.Kill(); err != nil {
						t.Fatal(err)
					}
				})
				eventually(t, "the server starts again, once PostgreSQL has noticed the end of the one that was killed", func() (bool, any) {
					err := s.Start()
					return err == nil, err
				})
				withModuleDatabase(t, s, o, func(db *sql.DB) {
					if after := digest(t, db, moduleRows); after != before {
						t.Errorf("the import left %+v, want %+v", after, before)
					}
				})
				wantWaiting(t, s, "syncapi_send_to_device", 0)
				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}

				withDatabase(t, s, func(db *sql.DB) {
					cmd := s.exportCommand("--force") // for the connection of this test
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the export is under way", func() (bool, any) { return moving(t, s, db, cmd.Process), cmd.ProcessState })
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
					_ = cmd.Wait()
				})
				if report := s.Export(t); report.Queues.Messages != crashRows {
					t.Errorf("the export reports %+v", report)
				}
				withDatabase(t, s, func(db *sql.DB) {
					if after := digest(t, db, hostRows); after != before {
						t.Errorf("the export left %+v, want %+v", after, before)
					}
				})
				withModuleDatabase(t, s, o, func(db *sql.DB) {
					if left := digest(t, db, moduleRows); left.Rows != 0 {
						t.Errorf("%d messages are left in the module's table", left.Rows)
					}
				})
			})
		})
	}
}

// withModuleDatabase opens the database that the options give the module while f runs.
func withModuleDatabase(t *testing.T, s *Server, o Options, f func(*sql.DB)) {
	t.Helper()
	section, own := o.ToDevice["database"].(object)
	if !own {
		withDatabase(t, s, f)
		return
	}
	driver, dsn := "postgres", section["connection_string"].(string)
	if s.Backend == SQLite {
		driver, dsn = "sqlite", dsn+"?_pragma=busy_timeout(20000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck
	f(db)
}
