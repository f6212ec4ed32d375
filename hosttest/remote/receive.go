package remote

import (
	"bytes"
	"io"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// Reply is how a transaction is answered; the functions below make the usual ones.
type Reply struct {
	Process bool            // what is in the transaction has arrived
	Until   <-chan struct{} // answer once it is closed, or never if the other side gives up
	Drop    bool            // close the connection instead of an answer
	Status  int
	ErrCode string // of an error; without one, an error other than 200 looks like a proxy's
}

// Accept processes a transaction and says so.
func Accept() Reply { return Reply{Process: true, Status: http.StatusOK} }

// AcceptLate processes a transaction at once and says so when the channel is closed.
func AcceptLate(until <-chan struct{}) Reply {
	return Reply{Process: true, Until: until, Status: http.StatusOK}
}

// ProcessAndDrop processes a transaction, and the answer gets lost.
func ProcessAndDrop() Reply { return Reply{Process: true, Drop: true} }

// Hang answers nothing, and closes the connection when the channel is closed.
func Hang(until <-chan struct{}) Reply { return Reply{Until: until, Drop: true} }

// Refuse answers with an error.
func Refuse(status int, errcode string) Reply { return Reply{Status: status, ErrCode: errcode} }

// RefuseByProxy is an error that does not come from a homeserver.
func RefuseByProxy(status int) Reply { return Reply{Status: status} }

// receive is PUT /send.
func (s *Server) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil { // the sender gave up or ended within its own request
		drop(req)
	}
	txnID := req.PathValue("txnID")
	req.Body = io.NopCloser(bytes.NewReader(body))
	signed, refusal := fclient.VerifyHTTPRequest(req, time.Now(), spec.ServerName(s.Name), nil, &s.verifier)
	if signed == nil {
		s.noteFault("the request for transaction %s is refused with %d %v", txnID, refusal.Code, refusal.JSON)
		writeAnswer(w, refusal.Code, refusal.JSON)
		return
	}
	x, err := parseTransaction(string(signed.Origin()), txnID, body)
	if err != nil {
		s.noteFault("transaction %s: %v: %.500s", txnID, err, body)
		writeAnswer(w, http.StatusBadRequest, object{"errcode": "M_NOT_JSON", "error": err.Error()})
		return
	}
	reply := s.take(x)
	defer s.done(req, x)
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
	reply.write(w)
}

func (r Reply) write(w http.ResponseWriter) {
	switch {
	case r.ErrCode == "" && r.Status == http.StatusOK:
		writeAnswer(w, r.Status, object{"pdus": object{}})
		return
	case r.ErrCode == "":
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(r.Status)
		_, _ = io.WriteString(w, "<html><h1>"+http.StatusText(r.Status)+"</h1></html>\n")
		return
	}
	refused := object{"errcode": r.ErrCode, "error": "as the test says"}
	if r.Status == http.StatusTooManyRequests {
		refused["retry_after_ms"] = 1000
	}
	writeAnswer(w, r.Status, refused)
}

// take records a transaction and decides on the reply.
func (s *Server) take(x *Transaction) Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check(x)
	if s.inFlight[x.Origin]++; s.inFlight[x.Origin] > 1 {
		s.fault("transaction %s came while another one was not answered", x.ID)
	}
	var reply Reply
	if len(s.script) > 0 {
		reply, s.script = s.script[0], s.script[1:]
	} else {
		reply = s.behave(x)
	}
	s.add(x, reply)
	return reply
}

func (s *Server) done(req *http.Request, x *Transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight[x.Origin]--
	if req.Context().Err() != nil {
		s.note("%s: the other side gave up %s", now(), x.ID)
	}
}
