package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// Reply is how the remote answers a transaction; the functions below make the usual ones.
type Reply struct {
	Process bool            // what is in the transaction has arrived
	Until   <-chan struct{} // answer once it is closed, or never if the other side gives up
	Drop    bool            // close the connection instead of an answer
	Status  int
	ErrCode string
}

func accept() Reply { return Reply{Process: true, Status: http.StatusOK} }

// acceptLate processes a transaction at once and says so when the channel is closed.
func acceptLate(until <-chan struct{}) Reply {
	return Reply{Process: true, Until: until, Status: http.StatusOK}
}

// processAndDrop processes a transaction, and the answer gets lost.
func processAndDrop() Reply { return Reply{Process: true, Drop: true} }

// hang answers nothing, and closes the connection when the channel is closed.
func hang(until <-chan struct{}) Reply { return Reply{Until: until, Drop: true} }

// refuse answers with an error.
func refuse(status int, errcode string) Reply { return Reply{Status: status, ErrCode: errcode} }

// refuseByProxy is an error that does not come from a homeserver.
func refuseByProxy(status int) Reply { return Reply{Status: status} }

// Behave says how each transaction from now on is answered, in the place of what was said before.
func (r *FakeRemote) Behave(behave func(*Transaction) Reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.behave = behave
}

// Script says how the next transactions are answered, before it goes on as Behave says.
func (r *FakeRemote) Script(replies ...Reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.script = append(r.script, replies...)
}

// receive is PUT /send.
func (r *FakeRemote) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil { // the sender gave up or ended within its own request
		drop(req)
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	signed, refusal := fclient.VerifyHTTPRequest(req, time.Now(), spec.ServerName(r.Name), nil, r.verifier)
	if signed == nil {
		r.mu.Lock()
		r.fault("the request for transaction %s is refused with %d %v", req.PathValue("txnID"), refusal.Code, refusal.JSON)
		r.mu.Unlock()
		writeAnswer(w, refusal.Code, refusal.JSON)
		return
	}
	x, err := parseTransaction(string(signed.Origin()), req.PathValue("txnID"), body)
	if err != nil {
		r.mu.Lock()
		r.fault("transaction %s: %v: %.500s", req.PathValue("txnID"), err, body)
		r.mu.Unlock()
		writeAnswer(w, http.StatusBadRequest, object{"errcode": "M_NOT_JSON", "error": err.Error()})
		return
	}
	reply := r.take(x)
	defer r.done(req, x)
	if reply.Until != nil {
		select {
		case <-reply.Until:
		case <-req.Context().Done():
			return
		}
	}
	if reply.Drop {
		drop(req)
	}
	switch {
	case reply.ErrCode == "" && reply.Status == http.StatusOK:
		writeAnswer(w, reply.Status, object{"pdus": object{}})
		return
	case reply.ErrCode == "":
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(reply.Status)
		_, _ = io.WriteString(w, "<html><h1>"+http.StatusText(reply.Status)+"</h1></html>\n")
		return
	}
	refused := object{"errcode": reply.ErrCode, "error": "as the test says"}
	if reply.Status == http.StatusTooManyRequests {
		refused["retry_after_ms"] = 1000
	}
	writeAnswer(w, reply.Status, refused)
}

// take records a transaction and decides on the reply.
func (r *FakeRemote) take(x *Transaction) Reply {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check(x)
	if r.inFlight[x.Origin]++; r.inFlight[x.Origin] > 1 {
		r.fault("transaction %s came while another one was not answered", x.ID)
	}
	var reply Reply
	if len(r.script) > 0 {
		reply, r.script = r.script[0], r.script[1:]
	} else {
		reply = r.behave(x)
	}
	r.add(x, reply)
	return reply
}

func (r *FakeRemote) done(req *http.Request, x *Transaction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight[x.Origin]--
	if req.Context().Err() != nil {
		r.note("%s: the other side gave up %s", now(), x.ID)
	}
}

// Transaction is a transaction that a remote was sent.
type Transaction struct {
	ID, Origin string
	Body       []byte // as it came
	PDUs       []json.RawMessage
	EDUs       []EDU
	Arrived    time.Time
}

// EDU is an EDU of a transaction.
type EDU struct {
	Type     string
	Raw      json.RawMessage // all of it
	ToDevice *ToDeviceEDU    // if it is one
}

// ToDeviceEDU is the content of an m.direct_to_device EDU.
type ToDeviceEDU struct {
	Sender    string
	Type      string
	MessageID string `json:"message_id"`
	Messages  map[string]map[string]json.RawMessage
}

func parseTransaction(origin, id string, body []byte) (*Transaction, error) {
	var document struct {
		PDUs []json.RawMessage
		EDUs []json.RawMessage
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, err
	}
	x := &Transaction{ID: id, Origin: origin, Body: body, PDUs: document.PDUs, Arrived: time.Now()}
	for i, raw := range document.EDUs {
		var edu struct {
			Type    string `json:"edu_type"`
			Content json.RawMessage
		}
		if err := json.Unmarshal(raw, &edu); err != nil {
			return nil, fmt.Errorf("EDU %d: %w", i, err)
		}
		parsed := EDU{Type: edu.Type, Raw: raw}
		if edu.Type == directToDevice {
			parsed.ToDevice = &ToDeviceEDU{}
			if err := json.Unmarshal(edu.Content, parsed.ToDevice); err != nil {
				return nil, fmt.Errorf("EDU %d: %w", i, err)
			}
		}
		x.EDUs = append(x.EDUs, parsed)
	}
	return x, nil
}

const directToDevice = "m.direct_to_device"

func now() string { return time.Now().Format("15:04:05.000") }
