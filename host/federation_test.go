package host

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/federationapi/statistics"
	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// fakeClient is the host's federation client. It answers every transaction with err.
type fakeClient struct {
	fclient.FederationClient
	err     error
	direct  []gomatrixserverlib.Transaction
	relayed map[spec.ServerName][]gomatrixserverlib.Transaction
	reached string
}

func (c *fakeClient) SendTransaction(_ context.Context, t gomatrixserverlib.Transaction) (fclient.RespSend, error) {
	c.direct = append(c.direct, t)
	return fclient.RespSend{PDUs: map[string]fclient.PDUResult{"$an:event": {}}}, c.err
}

func (c *fakeClient) P2PSendTransactionToRelay(_ context.Context, _ spec.UserID, t gomatrixserverlib.Transaction, relay spec.ServerName) (fclient.EmptyResp, error) {
	if c.relayed == nil {
		c.relayed = make(map[spec.ServerName][]gomatrixserverlib.Transaction)
	}
	c.relayed[relay] = append(c.relayed[relay], t)
	return fclient.EmptyResp{}, nil
}

func (c *fakeClient) DoRequestAndParseResponse(_ context.Context, req *http.Request, _ any) error {
	c.reached = req.URL.String()
	return c.err
}

// outgoing is a store in which two EDUs wait for "there".
func outgoing() *fakeStore {
	return &fakeStore{
		destinations: []storage.Destination{{Name: "there", Waiting: true}},
		outgoing: []storage.EDU{
			{Destination: "there", Position: 1, Origin: "here", Content: []byte(`{"message_id":"first"}`)},
			{Destination: "there", Position: 2, Origin: "here", Content: []byte(`{"message_id":"second"}`)},
		},
	}
}

func doorbell(t *testing.T) gomatrixserverlib.EDU {
	t.Helper()
	content, err := json.Marshal(gomatrixserverlib.ToDeviceMessage{Sender: "@doorbell:here", Type: outbox.DoorbellType, MessageID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	return gomatrixserverlib.EDU{Type: spec.MDirectToDevice, Origin: "here", Content: content}
}

func hostTransaction(t *testing.T) gomatrixserverlib.Transaction {
	t.Helper()
	return gomatrixserverlib.Transaction{
		TransactionID: "1-1", Origin: "here", Destination: "there", OriginServerTS: 1,
		PDUs: []json.RawMessage{[]byte(`{}`)}, EDUs: []gomatrixserverlib.EDU{doorbell(t)},
	}
}

func TestWaitingEDUsGoAlong(t *testing.T) {
	client, store := &fakeClient{}, outgoing()
	d := newTestHost(t, store)
	wrapped := d.WrapFederationClient(client)
	res, err := wrapped.SendTransaction(t.Context(), hostTransaction(t))
	if err != nil || len(res.PDUs) != 1 {
		t.Errorf("the answer is %+v, %v, want the destination's own", res, err)
	}
	if len(client.direct) != 1 || len(client.direct[0].PDUs) != 1 || len(client.direct[0].EDUs) != 2 {
		t.Fatalf("the transactions are %+v", client.direct)
	}
	if string(client.direct[0].EDUs[0].Content) != `{"message_id":"first"}` || len(store.outgoing) != 0 {
		t.Errorf("the EDUs are %+v, and left are %+v", client.direct[0].EDUs, store.outgoing)
	}
}

// A destination that can't be reached has its messages handed to each of its relays; they are done with once one
// has taken them.
func TestWaitingEDUsGoToRelays(t *testing.T) {
	client, store := &fakeClient{err: errors.New("down")}, outgoing()
	d := newTestHost(t, store)
	wrapped := d.WrapFederationClient(client)
	transaction := hostTransaction(t)
	if _, err := wrapped.SendTransaction(t.Context(), transaction); err == nil || len(store.outgoing) != 2 {
		t.Fatalf("the error is %v, and left are %+v", err, store.outgoing)
	}
	user, err := spec.NewUserID("@user:there", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = wrapped.P2PSendTransactionToRelay(t.Context(), *user, transaction, "relay"); err != nil {
		t.Fatal(err)
	}
	relayed := client.relayed["relay"]
	if len(relayed) != 1 || len(relayed[0].EDUs) != 2 || len(store.outgoing) != 0 {
		t.Fatalf("the relay has %+v, and left are %+v", relayed, store.outgoing)
	}
	if relayed[0].TransactionID != client.direct[0].TransactionID {
		t.Errorf("one transaction has the IDs %q and %q", relayed[0].TransactionID, client.direct[0].TransactionID)
	}
}

func TestReach(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		alive bool
	}{
		"an answer":      {nil, true},
		"a client error": {gomatrix.HTTPError{Code: 404}, true},
		"a proxy":        {gomatrix.HTTPError{Code: 502}, false},
		"no answer":      {errors.New("connection refused"), false},
	} {
		t.Run(name, func(t *testing.T) {
			client := &fakeClient{err: test.err}
			d := newTestHost(t, &fakeStore{})
			d.WrapFederationClient(client)
			d.UseFederationAPI(fakeFederationAPI{}, nil)
			if err := d.Reach(t.Context(), "there:8448"); (err == nil) != test.alive {
				t.Errorf("the error is %v", err)
			}
			if want := "matrix://there:8448/_matrix/federation/v1/version"; client.reached != want {
				t.Errorf("asked %s, want %s", client.reached, want)
			}
		})
	}
}

type fakeFederationAPI struct{}

func (fakeFederationAPI) MarkServersAlive([]spec.ServerName) {}

func (fakeFederationAPI) IsBlacklistedOrBackingOff(spec.ServerName) (*statistics.ServerStatistics, error) {
	return &statistics.ServerStatistics{}, errors.New("backing off, in a manner that the statistics do not know")
}

func TestBackoffWithoutTime(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	if until, givenUp := d.Backoff("there"); !until.IsZero() || givenUp {
		t.Errorf("before the start it is %s, %t", until, givenUp)
	}
	d.UseFederationAPI(fakeFederationAPI{}, nil)
	if until, givenUp := d.Backoff("there"); until.After(time.Now()) || givenUp {
		t.Errorf("it is %s, %t", until, givenUp)
	}
}

func TestHintPassesRequestsOn(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	called := 0
	handler := d.hint(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called++ }))
	for _, header := range []string{"", "Bearer x", "X-Matrix", `X-Matrix origin="there",key="ed25519:a",sig="x"`} {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Authorization", header)
		handler.ServeHTTP(httptest.NewRecorder(), req)
	}
	if called != 4 {
		t.Errorf("%d of 4 requests were passed on", called)
	}
}
