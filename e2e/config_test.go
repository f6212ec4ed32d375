package e2e

import (
	"strings"
	"testing"
)

// Switched off, or not there at all, the module leaves Dendrite as it is: messages go their old
// way and nothing of the module is in the database.
func TestSwitchedOff(t *testing.T) {
	for name, o := range map[string]Options{
		"enabled is false": {ToDevice: object{"enabled": false}},
		"no section":       {NoSection: true},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := StartServer(t, b, o)
				alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
				sendNumbered(t, alice, bob, 0, 2)
				events, since := bob.Receive(t, "", 2)
				wantNumbers(t, numbers(t, events), 0, 2)
				bob.Settle(t, since)
				for _, table := range []string{"todevice_messages", "todevice_position"} {
					if tableExists(t, s, table) {
						t.Errorf("there is a table %s", table)
					}
				}
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Switched on, the module has its tables: what the test above must not find.
func TestSwitchedOn(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		for _, table := range []string{"todevice_messages", "todevice_position"} {
			if !tableExists(t, s, table) {
				t.Errorf("there is no table %s", table)
			}
		}
	})
}

// A faulty section keeps the server from starting, and every fault is said at once, by its full
// key.
func TestConfigurationFaults(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		faults := object{
			"sync_limit":            0,
			"transaction_retention": "soon",
			"max_message_bytes":     -1,
			"max_request_bytes":     "many",
			"request_timeout":       "-2s",
			"sync_limits":           100,
			"database":              object{"connection_sting": "file:x.db"},
		}
		s := NewServer(t, b, Options{ToDevice: faults})
		output := wantRefusesToStart(t, s)
		for key := range faults {
			if key == "database" {
				key += ".connection_sting"
			}
			if !strings.Contains(output, "to_device."+key) {
				t.Errorf("want an error that names to_device.%s, got:\n%s", key, output)
			}
		}
	})
}

// The limits of the section are those the server keeps to.
func TestConfiguredLimits(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{ToDevice: object{"sync_limit": 7, "max_message_bytes": 20, "max_request_bytes": 1000}})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		sendNumbered(t, alice, bob, 0, 10)
		first := bob.Sync(t, Sync{})
		wantNumbers(t, numbers(t, first.Events()), 0, 7)
		wantNumbers(t, numbers(t, bob.Sync(t, Sync{Since: first.NextBatch}).Events()), 7, 10)
		a := alice.Put(t.Context(), "m.test", unique("txn"), To(object{"a": "0123456789abc"}, bob).Body()) // 21 bytes
		wantRejected(t, a, rejection{status: 413, errcode: "M_TOO_LARGE", names: []string{bob.UserID.String(), bob.DeviceID.String()}})
		a = alice.Put(t.Context(), "m.test", unique("txn"), []byte(`{"messages":{}`+strings.Repeat(" ", 1000)+`}`))
		wantRejected(t, a, rejection{status: 413, errcode: "M_TOO_LARGE"})
	})
}

// Two servers on one database would hand out the same positions: the second one does not start,
// and says why. The first one goes on.
func TestSecondServerOnOneDatabase(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		first := StartServer(t, b, Options{})
		alice, bob := Register(t, first, "alice"), Register(t, first, "bob")
		sendNumbered(t, alice, bob, 0, 1)
		second := NewServer(t, b, Options{DatabaseOf: first})
		output := wantRefusesToStart(t, second)
		if !strings.Contains(output, "to_device") || !strings.Contains(output, "another process") {
			t.Errorf("the error does not say that another server uses the database:\n%s", output)
		}
		if strings.Contains(output, "PerformDeviceCreation") {
			t.Errorf("the server wrote to the database before it refused to start:\n%s", output)
		}
		sendNumbered(t, alice, bob, 1, 2)
		events, since := bob.Receive(t, "", 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		bob.Settle(t, since)

		// When the first one is gone, however it went, the second one may start.
		if err := first.Kill(); err != nil {
			t.Fatal(err)
		}
		second.MustStart(t)
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
		first.MustStart(t)
		sendNumbered(t, alice, bob, 2, 3)
		events, _ = bob.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), 2, 3)
	})
}

func wantRefusesToStart(t *testing.T, s *Server) (output string) {
	t.Helper()
	if err := s.launch(); err != nil {
		t.Fatal(err)
	}
	code, output := s.WaitExit(t)
	if code == 0 {
		t.Errorf("the server ended with code 0")
	}
	if strings.Contains(output, "panic:") || strings.Contains(output, "goroutine 1 ") {
		t.Errorf("want an error for an operator, got a panic:\n%s", output)
	}
	return output
}
