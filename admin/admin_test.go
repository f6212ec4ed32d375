package admin_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const unrecognised = "M_UNRECOGNIZED" //nolint:misspell // as the specification has it

func TestStatus(t *testing.T) {
	each(t, func(f *fixture) {
		s := want[admin.Status](f, "GET", "/status")
		if s.Queues.Queues != 0 || s.Queues.OldestPosition != nil || s.Outbox.OldestPosition != nil || s.Trace.Capacity != 1000 {
			f.Errorf("%+v", s)
		}
		f.add(message{device("bob", "A"), at(90), ""}, message{device("bob", "A"), at(80), ""}, message{device("carol", "B"), at(70), ""})
		f.line(there, "1", at(60))
		f.refuse(f.line(there, "2", at(50)), 1, now, "400 ")
		f.refuse(f.line("d.example.org", "3", at(40)), 6, time.Time{}, "400 ")
		s = want[admin.Status](f, "GET", "/status")
		if s.Version != "v1.2.3" || s.StartedTS != now.UnixMilli()-3_600_000 || s.UptimeSeconds != 3600 || s.LastPosition != int64(f.last) {
			f.Errorf("%+v", s)
		}
		if q := s.Queues; q.Queues != 2 || q.Messages != 3 || *q.OldestPosition != int64(at(90)) || *q.AgeSeconds != 90 {
			f.Errorf("%+v", q)
		}
		if o := s.Outbox; o.Waiting != 1 || o.Bytes == 0 || *o.AgeSeconds != 60 || o.Refused != 1 || o.SetAside != 1 {
			f.Errorf("%+v", o)
		}
		if s.Counters[`things_total{kind="a"}`] != 3 || s.Trace.SinceTS != now.UnixMilli() || s.Trace.Overwritten {
			f.Errorf("%+v", s)
		}
	})
}

func TestTrace(t *testing.T) {
	f := onSQLite(t)
	d := device("bob", "A")
	f.ring.Record(
		trace.Record{Step: trace.Accepted, Recipient: d, Sender: user("alice"), Type: "m.test", MessageID: "mine"},
		trace.Record{Step: trace.Stored, Recipient: d, Sender: user("alice"), Type: "m.test", MessageID: "mine", Position: at(5)},
		trace.Record{Step: trace.Dropped, Reason: trace.UnknownDevice, Recipient: device("bob", "B"), Sender: user("carol"), MessageID: "other"},
	)
	for query, steps := range map[string]string{
		"message_id=mine": "accepted stored", "message_id=mine&limit=1": "stored", "sender=@carol:" + here: "dropped",
		"user_id=@bob:" + here: "accepted stored dropped", "user_id=@bob:" + here + "&device_id=B": "dropped", "edu_id=none": "",
		"message_id=mine&sender=@carol:" + here: "",
	} {
		got := want[admin.Trace](f, "GET", "/trace?"+query)
		var names []string
		for _, r := range got.Records {
			names = append(names, r.Step)
		}
		if strings.Join(names, " ") != steps || got.More != strings.Contains(query, "limit=1") || got.Records == nil || got.Coverage.Capacity != 1000 {
			t.Errorf("%s: %+v", query, got)
		}
	}
	got := want[admin.Trace](f, "GET", "/trace?message_id=mine").Records[1]
	if got != (admin.Record{
		TS: now.UnixMilli(), Step: "stored", UserID: d.UserID, DeviceID: d.DeviceID, Sender: user("alice"), Type: "m.test", MessageID: "mine",
		Position: int64(at(5)), Count: 1,
	}) {
		t.Errorf("%+v", got)
	}
}

func TestBadInput(t *testing.T) {
	f := onSQLite(t)
	f.add(message{device("bob", "A"), at(9), ""}, message{device("bob", "B"), at(8), ""})
	bySize := want[admin.Queues](f, "GET", "/queues?limit=1").Next
	bob, long := "/queues/@bob:"+here, strings.Repeat("x", 20_000)
	encode := func(cursor string) string { return base64.RawURLEncoding.EncodeToString([]byte(cursor)) }
	decoded, err := base64.RawURLEncoding.DecodeString(bySize)
	f.must(err)
	for _, test := range []struct {
		method, path string
		status       int
		errcode      string
	}{
		{"GET", "/status?a;b", 400, "M_INVALID_PARAM"},
		{"GET", "/status?%zz", 400, "M_INVALID_PARAM"},
		{"GET", "/status?x=1", 400, unrecognised},
		{"GET", "/queues?Limit=1", 400, unrecognised},
		{"GET", "/queues?" + long + "=1", 400, unrecognised},
		{"GET", "/queues?limit=0", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?limit=1001", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?limit=", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?limit=1&limit=2", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?limit=99999999999999999999", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?order=name", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?after=x", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?after=" + long, 400, "M_INVALID_PARAM"},
		{"GET", "/queues?order=", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?after=", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?after=bnVsbA", 400, "M_INVALID_PARAM"}, // null
		{"GET", "/outbox?after=" + encode(" null\n"), 400, "M_INVALID_PARAM"},
		{"GET", bob + "/A?after=bnVsbA", 400, "M_INVALID_PARAM"},
		{"GET", "/queues?order=age&after=" + bySize, 400, "M_INVALID_PARAM"},
		{"GET", "/queues?after=" + encode(strings.ReplaceAll(string(decoded), "@bob", `@b\u0000b`)), 400, "M_INVALID_PARAM"},
		{"GET", "/queues/bob/A", 400, "M_INVALID_PARAM"},
		{"GET", "/queues/@bob/A", 400, "M_INVALID_PARAM"},
		{"GET", "/queues/@b%FFb:" + here + "/A", 400, "M_INVALID_PARAM"},
		{"GET", bob + "/%00", 400, "M_INVALID_PARAM"},
		{"GET", bob + "/" + long, 400, "M_INVALID_PARAM"},
		{"GET", bob + "/A?after=LTE", 400, "M_INVALID_PARAM"}, // -1
		{"GET", bob + "/A?after=InhiIg", 400, "M_INVALID_PARAM"},
		{"GET", bob + "/A?after=" + encode(strings.Repeat(" ", 20_000)+"5"), 400, "M_INVALID_PARAM"},
		{"GET", bob + "/A?order=size", 400, unrecognised},
		{"DELETE", bob + "?limit=1", 400, unrecognised},
		{"DELETE", bob + "/A?device=B", 400, unrecognised},
		{"DELETE", "/queues/bob", 400, "M_INVALID_PARAM"},
		{"DELETE", "/queues/@b%FFb:" + here, 400, "M_INVALID_PARAM"},
		{"DELETE", "/queues/bob/A", 400, "M_INVALID_PARAM"},
		{"GET", "/outbox?order=age", 400, unrecognised},
		{"GET", "/outbox?after=NDI", 400, "M_INVALID_PARAM"}, // 42
		{"GET", "/outbox?after=" + encode(`"a\u0000"`), 400, "M_INVALID_PARAM"},
		{"GET", "/outbox/" + long, 400, "M_INVALID_PARAM"},
		{"GET", "/outbox/" + long[:256], 400, "M_INVALID_PARAM"},
		{"GET", "/outbox/%00", 400, "M_INVALID_PARAM"},
		{"GET", "/outbox/%FF/refused", 400, "M_INVALID_PARAM"},
		{"GET", "/outbox/" + there + "?x=1", 400, unrecognised},
		{"POST", "/outbox/" + there + "/retry?x=1", 400, unrecognised},
		{"POST", "/outbox/" + there + "/refused/0/retry", 400, "M_INVALID_PARAM"},
		{"POST", "/outbox/" + there + "/refused/1/retry?x=1", 400, unrecognised},
		{"DELETE", "/outbox/" + there + "/refused/-1", 400, "M_INVALID_PARAM"},
		{"DELETE", "/outbox/" + there + "/refused/x", 400, "M_INVALID_PARAM"},
		{"DELETE", "/outbox/" + there + "/refused?position=1", 400, unrecognised},
		{"GET", "/trace", 400, "M_MISSING_PARAM"},
		{"GET", "/trace?limit=5", 400, "M_MISSING_PARAM"},
		{"GET", "/trace?device_id=A", 400, "M_MISSING_PARAM"},
		{"GET", "/trace?device_id=A&message_id=x", 400, "M_MISSING_PARAM"},
		{"GET", "/trace?message_id=", 400, "M_INVALID_PARAM"},
		{"GET", "/trace?sender=%FF", 400, "M_INVALID_PARAM"},
		{"GET", "/trace?sender=" + long, 400, "M_INVALID_PARAM"},
		{"GET", "/trace?sender=x&limit=10001", 400, "M_INVALID_PARAM"},
		{"GET", "/trace?sender=x&after=1", 400, unrecognised},
		{"GET", "/status?access_token=of_the_host", 200, ""},
	} {
		if test.status == http.StatusOK {
			if code, body := f.request(test.method, test.path); code != test.status {
				t.Errorf("%s %s: %d %s", test.method, test.path, code, body)
			}
			continue
		}
		f.refused(test.method, test.path, test.status, test.errcode)
	}
	if left := want[admin.Queues](f, "GET", "/queues").Queues; len(left) != 2 {
		t.Errorf("what was refused deleted something: %+v", left)
	}
}

// failing is a store of which every call fails.
type failing struct{ err error }

func (s failing) Totals(context.Context) (storage.Totals, error) { return storage.Totals{}, s.err }
func (s failing) Queues(context.Context, storage.Order, *storage.Queue, int) ([]storage.Queue, error) {
	return nil, s.err
}
func (s failing) Envelopes(context.Context, types.Device, types.Position, int) ([]storage.Envelope, error) {
	return nil, s.err
}
func (s failing) Devices(context.Context, string) ([]string, error)          { return nil, s.err }
func (s failing) Lines(context.Context, string, int) ([]storage.Line, error) { return nil, s.err }
func (s failing) Line(context.Context, string) (storage.Line, error)         { return storage.Line{}, s.err }
func (s failing) Aside(context.Context, string, types.Position, int) ([]storage.Refusal, error) {
	return nil, s.err
}

func TestDatabaseFails(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		status int
	}{
		"away":     {fmt.Errorf("%w: connection refused", storage.ErrTransient), 503},
		"too slow": {context.DeadlineExceeded, 503},
		"a fault":  {errors.New("no such table"), 500},
	} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			f.options.Store = failing{test.err}
			for _, route := range admin.New(f.options).Routes() {
				path := strings.NewReplacer("{userID}", "@bob:"+here, "{deviceID}", "A", "{destination}", there, "{position}", "1").Replace(route.Path)
				if strings.Contains(path, "/refused/1") || path == "/trace" {
					continue // these ask the outbox and the trace
				}
				f.refused(route.Method, path, test.status, "M_UNKNOWN")
			}
			if !strings.Contains(f.log.String(), test.err.Error()) {
				t.Error("the log does not say why")
			}
		})
	}
}

func TestHostFails(t *testing.T) {
	f := onSQLite(t)
	f.options.UserDevices = func(context.Context, string) ([]string, error) { return nil, errors.New("the user API is away") }
	f.refused("DELETE", queuePath(device("bob", "A")), http.StatusServiceUnavailable, "M_UNKNOWN")
	f.refused("DELETE", "/queues/@bob:"+here, http.StatusServiceUnavailable, "M_UNKNOWN")
}

func TestEveryCallHasATimeLimit(t *testing.T) {
	f := onSQLite(t)
	f.options.Purge = nil
	var left time.Duration
	f.options.UserDevices = func(ctx context.Context, _ string) ([]string, error) {
		deadline, ok := ctx.Deadline()
		if left = time.Until(deadline); !ok {
			left = 0
		}
		return nil, nil
	}
	f.refused("DELETE", "/queues/@bob:"+here, http.StatusNotFound, "M_NOT_FOUND")
	if left <= 0 || left > 30*time.Second {
		t.Errorf("%s are left", left)
	}
}

func TestRoutesHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, route := range admin.New(admin.Options{}).Routes() {
		if seen[route.Name] || seen[route.Method+route.Path] || !regexp.MustCompile(`^todevice_[a-z_]+$`).MatchString(route.Name) {
			t.Errorf("%+v", route)
		}
		seen[route.Name], seen[route.Method+route.Path] = true, true
	}
}

// The host is not asked for the devices of another server's user: it may know a local one of that name.
func TestDevicesOfAnotherServersUser(t *testing.T) {
	f := onSQLite(t)
	f.devices["@bob:"+there] = []string{"A"}
	f.refused("GET", "/queues/@bob:"+there+"/A", 404, "M_NOT_FOUND")
	f.refused("DELETE", "/queues/@bob:"+there, 404, "M_NOT_FOUND")
}

// A position may be ahead of the clock; an age is never below zero.
func TestAgeOfAPositionAheadOfTheClock(t *testing.T) {
	f := onSQLite(t)
	f.must(f.store.Commit(t.Context(), storage.Batch{
		Writer: "writer", Previous: f.last, Last: at(-60),
		Deliveries: []storage.Delivery{{
			Position: at(-60), Sender: "@alice:" + here, Type: "m.test", Copies: []storage.Copy{{Device: device("bob", "A"), Content: []byte(`{}`)}},
		}},
	}))
	got := want[admin.Queues](f, "GET", "/queues").Queues
	if len(got) != 1 || got[0].AgeSeconds == nil || *got[0].AgeSeconds != 0 {
		t.Errorf("the queues are %+v", got)
	}
}
