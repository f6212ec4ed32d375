package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
)

// requestOf is a request of another server as the host's authentication leaves it.
func requestOf(t testing.TB, content string) *fclient.FederationRequest {
	t.Helper()
	request := fclient.NewFederationRequest("PUT", "there", "here", "/_matrix/federation/v1/send/txn")
	if err := request.SetContent(json.RawMessage(content)); err != nil {
		t.Fatal(err)
	}
	return &request
}

func toDeviceEDU(content string) string {
	return `{"edu_type":"m.direct_to_device","origin":"there","content":` + content + `}`
}

const typingEDU = `{"edu_type":"m.typing","content":{"room_id":"!r:there","typing":true,"user_id":"@carol:there"}}`

func TestSplitTransaction(t *testing.T) {
	for _, test := range []struct{ name, content, rest, contents string }{
		{
			"to-device alone",
			`{"edus":[` + toDeviceEDU(`{"a":1}`) + `],"origin":"there","origin_server_ts":1}`,
			`{"edus":[],"origin":"there","origin_server_ts":1}`, `[{"a":1}]`,
		},
		{
			"among others",
			`{"pdus":[{"z":1.50,"a":"<&>\u2028"},{}],"edus":[` + toDeviceEDU(`{"a":1}`) + `,` + typingEDU + `,` + toDeviceEDU(`{"b":[]}`) + `,{"x":1}],"more":{"z":1,"a":2}}`,
			`{"edus":[` + typingEDU + `,{"x":1}],"more":{"z":1,"a":2},"pdus":[{"z":1.50,"a":"\u003c\u0026\u003e\u2028"},{}]}`, `[{"a":1} {"b":[]}]`,
		},
		{"without content", `{"edus":[{"edu_type":"m.direct_to_device"}]}`, `{"edus":[]}`, `[]`},
		{"in other keys", `{"edus":[{"Edu_Type":"m.direct_to_device","CONTENT":{}}]}`, `{"edus":[]}`, `[{}]`},
		{"by an escape", `{"edus":[{"edu_type":"m.direct\u005fto_device","content":{}}]}`, `{"edus":[]}`, `[{}]`},
		// The keys of a transaction are matched exactly, and nothing of what looks like them reaches the host.
		{"in another list", `{"EDUS":[],"edu\u017f":[` + toDeviceEDU(`{}`) + `],"pdus":[1]}`, `{"edus":[],"pdus":[1]}`, `[]`},
		{"in two lists", `{"edus":[` + toDeviceEDU(`{}`) + `],"Edus":[` + toDeviceEDU(`{}`) + `]}`, `{"edus":[]}`, `[{}]`},
		{"put together of two lists", `{"edus":[{"edu_type":"m.direct_to_device"}],"edus":[{"content":{}}]}`, `{"edus":[{"content":{}}]}`, `[]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := requestOf(t, test.content)
			toDevice, rest, err := splitTransaction(request)
			if err != nil || rest == request {
				t.Fatalf("the request is unchanged, %v", err)
			}
			if got := string(rest.Content()); got != test.rest {
				t.Errorf("the rest is %s, want %s", got, test.rest)
			}
			if got := fmt.Sprintf("%s", toDevice); got != test.contents {
				t.Errorf("the contents are %s, want %s", got, test.contents)
			}
			if rest.Origin() != "there" || rest.Destination() != "here" || rest.Method() != "PUT" || rest.RequestURI() != request.RequestURI() {
				t.Errorf("the request became %+v", rest)
			}
		})
	}
}

func TestTransactionIsLeftToTheHost(t *testing.T) {
	list := func(n int, item string) string {
		return "[" + strings.Join(slices.Repeat([]string{item}, n), ",") + "]"
	}
	toDevice := toDeviceEDU(`{}`)
	for name, content := range map[string]string{
		"nothing":               `{}`,
		"null":                  `null`,
		"no object":             `[` + toDevice + `]`,
		"no to-device EDU":      `{"edus":[` + typingEDU + `],"pdus":[{}]}`,
		"to-device in an EDU":   `{"edus":[{"edu_type":"x","content":{"edu_type":"m.direct_to_device"}}]}`,
		"EDUs that are no list": `{"edus":` + toDevice + `}`,
		"an EDU of a bad type":  `{"edus":[` + toDevice + `,{"edu_type":1}]}`,
		"PDUs that are no list": `{"edus":[` + toDevice + `],"pdus":{}}`,
	} {
		request := requestOf(t, content)
		contents, rest, err := splitTransaction(request)
		if err != nil || len(contents) != 0 || rest != request {
			t.Errorf("%s: %s, %v", name, contents, err)
		}
	}
	contents, _, err := splitTransaction(requestOf(t, `{"edus":`+list(100, toDevice)+`,"pdus":`+list(50, "{}")+`}`))
	if err != nil || len(contents) != 100 {
		t.Errorf("of the largest transaction %d contents are taken, %v", len(contents), err)
	}
}

func TestTransactionWithTooManyParts(t *testing.T) {
	list := func(n int, item string) string {
		return "[" + strings.Join(slices.Repeat([]string{item}, n), ",") + "]"
	}
	for name, content := range map[string]string{
		"PDUs":             `{"edus":[` + toDeviceEDU(`{}`) + `],"pdus":` + list(51, "{}") + `}`,
		"EDUs":             `{"edus":` + list(101, toDeviceEDU(`{}`)) + `}`,
		"in the first one": `{"edus":` + list(101, toDeviceEDU(`{}`)) + `,"edus":[]}`,
		"in another key":   `{"edus":[],"PDU\u017f":` + list(51, "1") + `}`,
		"members":          `{"edus":[]` + strings.Repeat(`,"":1`, 100) + `}`,
	} {
		contents, rest, err := splitTransaction(requestOf(t, content))
		if !errors.Is(err, errTooManyParts) || contents != nil || rest != nil {
			t.Errorf("%s: %s, %v", name, contents, err)
		}
	}
}

// FuzzTransaction takes any transaction: the host never gets to see a to-device EDU of one that it would
// not refuse, and what it gets is the transaction itself if it had none.
func FuzzTransaction(f *testing.F) {
	f.Add(`{"edus":[` + toDeviceEDU(`{"a":1}`) + `,` + typingEDU + `],"pdus":[{}],"origin":"there"}`)
	f.Add(`{"EDUS":[` + toDeviceEDU(`{}`) + `],"edus":[{"content":{}}],"edus":[null]}`)
	f.Add(`{"edus":[{"edu_type":"m.direct_to_device"}],"edu\u017f":[{"EDU_TYPE":"x"}]}`)
	f.Fuzz(func(t *testing.T, content string) {
		request := fclient.NewFederationRequest("PUT", "there", "here", "/_matrix/federation/v1/send/txn")
		if request.SetContent(json.RawMessage(content)) != nil {
			return // not JSON, which the host refuses
		}
		contents, rest, err := splitTransaction(&request)
		var host struct {
			PDUs []json.RawMessage       `json:"pdus"`
			EDUs []gomatrixserverlib.EDU `json:"edus"`
		}
		if errors.Is(err, errTooManyParts) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		refused := json.Unmarshal(rest.Content(), &host) != nil || len(host.PDUs) > 50 || len(host.EDUs) > 100
		if !refused && slices.ContainsFunc(host.EDUs, isToDevice) {
			t.Errorf("the host gets %s", rest.Content())
		}
		if rest == &request && len(contents) != 0 {
			t.Errorf("the host gets the whole, with %s", contents)
		}
	})
}
