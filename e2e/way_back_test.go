package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README's way back to unmodified Dendrite loses nothing that is sent from then on, for clients that
// keep their tokens; nor does the way there again.
func TestGoingBackAndThereAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, "")
		exchange := func(label string) {
			t.Helper()
			alice.Send(t, "org.example."+label, To(object{"n": 1}, bob))
			alice.Send(t, "org.example."+label, To(object{"n": 2}, bob))
			var events []Event
			events, since = bob.Receive(t, since, 2)
			if events[0].Type != "org.example."+label || events[1].Type != "org.example."+label {
				t.Errorf("%s: got %s", label, describe(events))
			}
		}
		exchange("enabled")

		reconfigure(t, s, Options{ToDevice: object{"enabled": false}}, func() {
			if _, err := s.OpenDatabase(t).Exec(readmeSQL(t, b)); err != nil {
				t.Fatal(err)
			}
		})
		exchange("unmodified")

		reconfigure(t, s, Options{}, func() {})
		exchange("enabled.again")
	})
}

func reconfigure(t *testing.T, s *Server, o Options, whileStopped func()) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(s.path("dendrite.yaml"), s.config(o)); err != nil {
		t.Fatal(err)
	}
	whileStopped()
	s.MustStart(t)
}

// readmeSQL returns the statements that the README gives for a database.
func readmeSQL(t *testing.T, b Backend) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	name := map[Backend]string{Postgres: "PostgreSQL", SQLite: "SQLite"}[b]
	for _, block := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		if strings.Contains(block[1], "-- "+name) {
			return block[1]
		}
	}
	t.Fatalf("the README has no SQL for %s", name)
	return ""
}
