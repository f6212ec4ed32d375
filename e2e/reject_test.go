package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// rejection is a request the server must refuse, with nothing stored for anyone.
type rejection struct {
	name    string
	body    string
	status  int
	errcode string
	names   []string // what the error must name
}

// What is wrong with a body is answered as the client can make use of it, and stores nothing:
// not for the recipients before the fault, and not for those after it.
func TestRejectedBodies(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		carol, dave := Register(t, s, "carol"), Register(t, s, "dave")
		user, device := carol.UserID.String(), carol.DeviceID.String()
		// There are good recipients before and after the bad one.
		with := func(bad string) string {
			return fmt.Sprintf(`{"messages":{%q:{"*":{"n":1}},%s,%q:{"*":{"n":1}}}}`, bob.UserID, bad, dave.UserID)
		}
		tooLarge := fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", maxMessageBytes-len(`{"a":""}`)+1))
		for _, r := range []rejection{
			{"empty", "", 400, "M_NOT_JSON", nil},
			{"cut off", `{"messages":{`, 400, "M_NOT_JSON", nil},
			{"words", `hello`, 400, "M_NOT_JSON", nil},
			{"two documents", `{"messages":{}}{}`, 400, "M_NOT_JSON", nil},
			{"control character", "{\"messages\":{\"\x00\":{}}}", 400, "M_NOT_JSON", nil},
			{"array", `[]`, 400, "M_BAD_JSON", nil},
			{"string", `"messages"`, 400, "M_BAD_JSON", nil},
			{"null", `null`, 400, "M_BAD_JSON", nil},
			{"messages is an array", `{"messages":[]}`, 400, "M_BAD_JSON", []string{"messages"}},
			{"messages is a string", `{"messages":"x"}`, 400, "M_BAD_JSON", []string{"messages"}},
			{"user's part is an array", with(fmt.Sprintf(`%q:[]`, user)), 400, "M_BAD_JSON", []string{user}},
			{"user's part is null", with(fmt.Sprintf(`%q:null`, user)), 400, "M_BAD_JSON", []string{user}},
			{"content is an array", with(fmt.Sprintf(`%q:{%q:[{"a":1}]}`, user, device)), 400, "M_BAD_JSON", []string{user, device}},
			{"content is a string", with(fmt.Sprintf(`%q:{%q:"a"}`, user, device)), 400, "M_BAD_JSON", []string{user, device}},
			{"content is nested too deep", with(fmt.Sprintf(`%q:{%q:%s}`, user, device, nested(101))), 400, "M_BAD_JSON", []string{user, device}},
			// The encoder of a /sync response gives up just above this.
			{"content is nested too deep to send", with(fmt.Sprintf(`%q:{%q:%s}`, user, device, nested(9997))), 400, "M_BAD_JSON", []string{user, device}},
			{"content is null", with(fmt.Sprintf(`%q:{%q:null}`, user, device)), 400, "M_BAD_JSON", []string{user, device}},
			{"content is a number", with(fmt.Sprintf(`%q:{"*":1}`, user)), 400, "M_BAD_JSON", []string{user, "*"}},
			{"no messages", `{}`, 400, "M_MISSING_PARAM", []string{"messages"}},
			{"no messages, something else", `{"Messages":{}}`, 400, "M_MISSING_PARAM", []string{"messages"}},
			{"content too large", with(fmt.Sprintf(`%q:{%q:%s}`, user, device, tooLarge)), 413, "M_TOO_LARGE", []string{user, device}},
			{"content too large for all", with(fmt.Sprintf(`%q:{"*":%s}`, user, tooLarge)), 413, "M_TOO_LARGE", []string{user, "*"}},
			{"invalid UTF-8", with(fmt.Sprintf("%q:{%q:{\"a\":\"\xff\"}}", user, device)), 400, "M_INVALID_PARAM", nil},
			{"overlong UTF-8", with(fmt.Sprintf("%q:{%q:{\"a\":\"\xc0\x80\"}}", user, device)), 400, "M_INVALID_PARAM", nil},
			{"invalid UTF-8 in a key", with(fmt.Sprintf("%q:{%q:{\"\xed\xa0\x80\":1}}", user, device)), 400, "M_INVALID_PARAM", nil},
		} {
			t.Run(r.name, func(t *testing.T) {
				txn := unique("txn")
				a := alice.Put(t.Context(), "m.test", txn, []byte(r.body))
				wantRejected(t, a, r)
				for _, c := range []*Client{bob, carol, dave} {
					c.WantNothing(t, "")
				}
				// A refusal is no transaction: the client may put it right and use the ID again.
				alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
				events, since := bob.Receive(t, "", 1)
				wantNumbers(t, numbers(t, events), 0, 1)
				bob.Settle(t, since)
			})
		}
	})
}

// The limit of a content is that of its canonical JSON: what only the writing makes long passes.
func TestContentWithinLimit(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		exact := fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", maxMessageBytes-len(`{"a":""}`)))
		since := ""
		for name, content := range map[string]string{
			"exactly the limit":   exact,
			"long by white space": `{"a":` + strings.Repeat(" \n", maxMessageBytes) + `1}`,
			"long by escapes":     `{"a":"` + strings.Repeat(`\u0061`, maxMessageBytes/2) + `"}`,
		} {
			body := fmt.Sprintf(`{"messages":{%q:{%q:%s}}}`, bob.UserID, bob.DeviceID, content)
			if a := alice.Put(t.Context(), "m.test", unique("txn"), []byte(body)); a.Status != http.StatusOK {
				t.Fatalf("%s: want 200, got %d %s %s", name, a.Status, a.ErrCode, a.Message)
			}
			var events []Event
			events, since = bob.Receive(t, since, 1)
			wantSameJSON(t, events[0].Content, []byte(content))
		}
	})
}

// An event type or a transaction ID that PostgreSQL can't hold, or that is too long, is refused
// on either database; the longest that is allowed passes.
func TestRejectedPaths(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, r := range []struct{ name, eventType, txnID string }{
		{"NUL in the type", "m.%00", "txn"},
		{"NUL in the transaction ID", "m.test", "txn%00"},
		{"invalid UTF-8 in the type", "m.%FF", "txn"},
		{"invalid UTF-8 in the transaction ID", "m.test", "%C3%28"},
		{"surrogate in the transaction ID", "m.test", "%ED%A0%80"},
		{"long type", long, "txn"},
		{"long transaction ID", "m.test", long},
		{"long type in bytes", strings.Repeat("%C3%A9", 128), "txn"},
	} {
		t.Run(r.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := SharedServer(t, b)
				alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
				target := s.URL + "/_matrix/client/v3/sendToDevice/" + r.eventType + "/" + r.txnID
				a := rawPut(t, alice, target, To(object{"n": 0}, bob).Body())
				wantRejected(t, a, rejection{status: 400, errcode: "M_INVALID_PARAM"})
				bob.WantNothing(t, "")
			})
		})
	}
	t.Run("the longest", func(t *testing.T) {
		onBoth(t, func(t *testing.T, b Backend) {
			s := SharedServer(t, b)
			alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
			eventType, txn := strings.Repeat("é", 127)+"x", (unique("txn") + strings.Repeat("x", 255))[:255]
			for range 2 {
				alice.SendTxn(t, eventType, txn, To(object{"n": 0}, bob))
			}
			wantOne(t, bob, "")
			if got := bob.Sync(t, Sync{}).Events()[0].Type; got != eventType {
				t.Errorf("want the type %q, got %q", eventType, got)
			}
		})
	})
}

// A body over the limit is refused while most of it is still to come: the server must not read,
// let alone keep, what it will not take.
func TestRequestTooLarge(t *testing.T) {
	t.Run("announced", func(t *testing.T) {
		wantRefusedEarly(t, "Content-Length: 10000000000", func(out io.Writer) error {
			_, err := io.WriteString(out, `{"messages":{`)
			return err
		})
	})
	chunks := func(total int) func(out io.Writer) error {
		return func(out io.Writer) error {
			chunk := strings.Repeat(" ", 64<<10)
			for sent := 0; sent < total; sent += len(chunk) {
				if _, err := fmt.Fprintf(out, "%x\r\n%s\r\n", len(chunk), chunk); err != nil {
					return err
				}
			}
			return nil
		}
	}
	t.Run("chunked and then silent", func(t *testing.T) {
		wantRefusedEarly(t, "Transfer-Encoding: chunked", chunks(maxRequestBytes+64<<10))
	})
	t.Run("chunked without end", func(t *testing.T) {
		wantRefusedEarly(t, "Transfer-Encoding: chunked", chunks(1<<30))
	})
	t.Run("sent whole", func(t *testing.T) {
		onBoth(t, func(t *testing.T, b Backend) {
			s := SharedServer(t, b)
			alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
			body := To(object{"n": 0}, bob).Body()
			fits := string(body) + strings.Repeat(" ", maxRequestBytes-len(body))
			wantRejected(t, rawPut(t, alice, alice.PutURL("v3", "m.test", unique("txn")), []byte(fits+" ")),
				rejection{status: 413, errcode: "M_TOO_LARGE"})
			bob.WantNothing(t, "")
			if a := alice.Put(t.Context(), "m.test", unique("txn"), []byte(fits)); a.Status != http.StatusOK {
				t.Errorf("at the limit: want 200, got %v", a)
			}
			wantOne(t, bob, "")
		})
	})
}

// wantRefusedEarly sends the head of a request with the header given, then what write writes,
// and then nothing more: the answer must come nevertheless.
func wantRefusedEarly(t *testing.T, header string, write func(out io.Writer) error) {
	t.Helper()
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice := Register(t, s, "alice")
		target, err := url.Parse(alice.PutURL("v3", "m.test", unique("txn")))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", target.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck
		if err = conn.SetDeadline(time.Now().Add(deadline)); err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n\r\n",
			target.RequestURI(), target.Host, alice.AccessToken, header)
		if err != nil {
			t.Fatal(err)
		}
		// The server may close the connection before everything is sent; what counts is its answer.
		go func() { _ = write(conn) }()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("no answer while the body is incomplete: %v", err)
		}
		defer res.Body.Close() //nolint:errcheck
		wantRejected(t, readAnswer(t, res), rejection{status: 413, errcode: "M_TOO_LARGE"})
	})
}

func wantRejected(t *testing.T, a Answer, r rejection) {
	t.Helper()
	if a.Status != r.status || a.ErrCode != r.errcode {
		t.Fatalf("want %d %s, got %v", r.status, r.errcode, a)
	}
	if a.Message == "" {
		t.Errorf("the error says nothing: %v", a)
	}
	for _, name := range r.names {
		if !strings.Contains(a.Message, name) {
			t.Errorf("want an error that names %q, got %q", name, a.Message)
		}
	}
}
