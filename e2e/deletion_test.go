package e2e

import (
	"context"
	"database/sql"
	"net/http"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// want200 sends a request as a client, with the password where it is asked for.
func want200(t *testing.T, c *Client, method, url string, body object) {
	t.Helper()
	a := c.do(t.Context(), method, url, mustJSON(body))
	if a.Status == http.StatusUnauthorized && a.ErrCode == "" { // user-interactive authentication
		body["auth"] = object{
			"type": "m.login.password", "password": password,
			"identifier": object{"type": "m.id.user", "user": c.UserID},
		}
		a = c.do(t.Context(), method, url, mustJSON(body))
	}
	if a.Status != http.StatusOK {
		t.Fatalf("%s %s: want 200, got %v", method, url, a)
	}
}

// promote makes a user an administrator.
func promote(t *testing.T, s *Server, c *Client) {
	t.Helper()
	const administrator = 3 // userapi/api/api.go
	localpart, _, err := c.UserID.Parse()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.openDatabaseOf(t, "userapi").Exec("UPDATE userapi_accounts SET account_type = $1 WHERE localpart = $2", administrator, localpart); err != nil {
		t.Fatal(err)
	}
}

// kept returns what the database holds for a device: messages and transaction records.
func kept(t testing.TB, db *sql.DB, c *Client) int {
	t.Helper()
	n := queued(t, db, c)
	var transactions int
	err := db.QueryRow(
		"SELECT COUNT(*) FROM todevice_transactions WHERE user_id = $1 AND device_id = $2", c.UserID.String(), c.DeviceID.String(),
	).Scan(&transactions)
	if err != nil {
		t.Fatal(err)
	}
	return n + transactions
}

const newPassword = "another password"

// deletion is a way in which the device gone of a user who has another one comes to its end.
type deletion struct {
	name       string
	all, final bool // all of the user's devices are deleted, and the account too
	call       func(t *testing.T, admin, gone, other *Client)
}

func deletions() []deletion {
	client := func(c *Client, path ...any) string { return c.BuildClientURL(append([]any{"v3"}, path...)...) }
	return []deletion{
		{name: "logout", call: func(t *testing.T, _, gone, _ *Client) {
			want200(t, gone, http.MethodPost, client(gone, "logout"), object{})
		}},
		{name: "logout all", all: true, call: func(t *testing.T, _, gone, _ *Client) {
			want200(t, gone, http.MethodPost, client(gone, "logout", "all"), object{})
		}},
		{name: "delete_devices", call: func(t *testing.T, _, gone, other *Client) {
			want200(t, other, http.MethodPost, client(other, "delete_devices"), object{"devices": []id.DeviceID{gone.DeviceID}})
		}},
		{name: "device", call: func(t *testing.T, _, gone, other *Client) {
			want200(t, other, http.MethodDelete, client(other, "devices", gone.DeviceID), object{})
		}},
		{name: "new password", call: func(t *testing.T, _, _, other *Client) {
			want200(t, other, http.MethodPost, client(other, "account", "password"), object{"new_password": newPassword, "logout_devices": true})
		}},
		{name: "deactivation", all: true, final: true, call: func(t *testing.T, _, gone, _ *Client) {
			want200(t, gone, http.MethodPost, client(gone, "account", "deactivate"), object{})
		}},
		{name: "administrator's new password", all: true, call: func(t *testing.T, admin, gone, _ *Client) {
			url := admin.BuildURL(mautrix.BaseURLPath{"_dendrite", "admin", "resetPassword", gone.UserID})
			want200(t, admin, http.MethodPost, url, object{"password": newPassword, "logout_devices": true})
		}},
	}
}

// When the call that deletes a device returns, nothing is kept for it, and a device that is made later under its ID
// finds nothing, neither messages nor transaction IDs. The user's other device keeps what it has.
func TestDeletedDeviceLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		db := s.OpenDatabase(t)
		alice := Register(t, s, "alice")
		promote(t, s, alice)
		for _, d := range deletions() {
			t.Run(d.name, func(t *testing.T) {
				gone := Register(t, s, "bob")
				other := gone.Login(t, s, "OTHER")
				const waiting = 20
				for i := range waiting {
					alice.Send(t, "m.test", To(object{"n": i}, gone, other))
				}
				txn := unique("txn")
				gone.SendTxn(t, "m.test", txn, To(object{"n": 1}, alice))

				d.call(t, alice, gone, other)
				if n := kept(t, db, gone); n > 0 {
					t.Errorf("%d rows are kept for the deleted device", n)
				}
				want := waiting
				if d.all {
					want = 0
				}
				if n := queued(t, db, other); n != want {
					t.Errorf("%d messages wait for the other device, want %d", n, want)
				}
				if d.final {
					return
				}

				again := loginWith(t, s, gone, password, newPassword)
				since := again.Settle(t, "")
				again.SendTxn(t, "m.test", txn, To(object{"n": 2}, again))
				events, since := again.Receive(t, since, 1)
				wantNumbers(t, numbers(t, events), 2, 3)
				again.Settle(t, since)
			})
		}
	})
}

// loginWith signs in under the ID of a deleted device, with the first password that will do.
func loginWith(t *testing.T, s *Server, c *Client, passwords ...string) *Client {
	t.Helper()
	var errs []error
	for _, p := range passwords {
		n := newClient(t, s)
		res, err := n.Client.Login(t.Context(), &mautrix.ReqLogin{
			Type:       mautrix.AuthTypePassword,
			Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: c.UserID.String()},
			Password:   p, DeviceID: c.DeviceID,
		})
		if err == nil {
			return n.as(res.UserID, res.DeviceID, res.AccessToken)
		}
		errs = append(errs, err)
	}
	t.Fatalf("signing in: %v", errs)
	return nil
}

// The server is killed before the host has deleted the device, between that and the deletion of its queue, half way through
// it, and after it. A device that is made then under the same ID finds nothing; one that was not deleted has all.
func TestKilledWhileDeleting(t *testing.T) {
	t.Parallel()
	const (
		waiting = 3000
		many    = 100_000 // deleted in so many transactions that a test can come in between
	)
	logout := func(c *Client) { // whatever it is answered, if it is
		_ = c.do(context.Background(), http.MethodPost, c.BuildClientURL("v3", "logout"), []byte(`{}`))
	}
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		db := s.OpenDatabase(t)
		accounts := s.openDatabaseOf(t, "userapi")
		devices := func(c *Client) (n int) {
			err := accounts.QueryRow("SELECT COUNT(*) FROM userapi_devices WHERE access_token = $1", c.AccessToken).Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		alice := Register(t, s, "alice")
		steps := []struct {
			name      string
			component string // of which the database is blocked
			table     string // which one, on PostgreSQL
			rows      int
			reached   func(c *Client) bool
		}{
			{"before", "userapi", "userapi_devices", waiting, func(*Client) bool { return true }},
			{"between", "syncapi", "todevice_messages", waiting, func(c *Client) bool { return devices(c) == 0 }},
			{"half way", "", "", many, func(c *Client) bool { return queued(t, db, c) < many }},
			{"after", "", "", waiting, func(c *Client) bool { return kept(t, db, c) == 0 }},
		}
		for _, step := range steps {
			t.Run(step.name, func(t *testing.T) {
				bob := Register(t, s, "bob")
				since := bob.Settle(t, "")
				fill(t, db, bob, step.rows)
				unlock := block(t, s, step.component, step.table)
				logged := s.logSize()
				done := make(chan struct{})
				go func() {
					defer close(done)
					logout(bob)
				}()
				eventually(t, "the step is reached", func() (bool, any) { return step.reached(bob), queued(t, db, bob) })
				eventually(t, "the request has arrived", func() (bool, any) {
					log := s.logTail(logged)
					return strings.Contains(log, "PerformDeviceDeletion"), log
				})
				kill(t, s)
				unlock()
				<-done
				left := queued(t, db, bob)
				t.Logf("%s: killed with %d of %d messages left", step.name, left, step.rows)
				if step.name == "half way" && (left == 0 || left == step.rows) {
					t.Errorf("the server was not killed half way: %d of %d messages are left", left, step.rows)
				}
				supervise(t, s)

				if devices(bob) > 0 {
					events, _ := bob.Receive(t, since, waiting)
					wantNumbers(t, numbers(t, events), 0, waiting)
					return
				}
				if step.name == "before" {
					t.Error("the device was deleted although its table was blocked")
				}
				again := bob.Login(t, s, bob.DeviceID)
				again.WantNothing(t, "")
				alice.Send(t, "m.test", To(object{"n": 1}, again))
				events, since := again.Receive(t, "", 1)
				wantNumbers(t, numbers(t, events), 1, 2)
				again.Settle(t, since)
			})
		}

		// Where nobody makes the device again, what is left goes by itself.
		t.Run("and nobody comes back", func(t *testing.T) {
			bob := Register(t, s, "bob")
			fill(t, db, bob, waiting)
			unlock := block(t, s, "syncapi", "todevice_messages")
			done := make(chan struct{})
			go func() {
				defer close(done)
				logout(bob)
			}()
			eventually(t, "the device is deleted", func() (bool, any) { return devices(bob) == 0, "" })
			kill(t, s)
			unlock()
			<-done
			if kept(t, db, bob) == 0 {
				t.Fatal("nothing is left")
			}
			supervise(t, s)
			eventually(t, "what is left is deleted", func() (bool, any) { n := kept(t, db, bob); return n == 0, n })
		})
	})
}

// block keeps everybody else from writing to a table, or on SQLite to the whole database, of a component of the host.
func block(t *testing.T, s *Server, component, table string) (unlock func()) {
	t.Helper()
	if component == "" {
		return func() {}
	}
	conn, err := s.openDatabaseOf(t, component).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	statement := "BEGIN IMMEDIATE"
	if s.Backend == Postgres {
		statement = "BEGIN; LOCK TABLE " + table + " IN EXCLUSIVE MODE"
	}
	if _, err = conn.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	}
}

// fill puts numbered messages into a queue, as if they had been sent long ago.
func fill(t *testing.T, db *sql.DB, c *Client, n int) {
	t.Helper()
	// Behind what the device has acknowledged, and before what the server will allot.
	_, err := db.Exec(`
		WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < $3)
		INSERT INTO todevice_messages (user_id, device_id, position, sender, type, content)
		SELECT $1, $2, (SELECT last FROM todevice_position) + 1 + n, '@old:friend', 'm.test', '{"n":' || n || '}' FROM numbers`,
		c.UserID.String(), c.DeviceID.String(), n-1)
	if err != nil {
		t.Fatal(err)
	}
}
