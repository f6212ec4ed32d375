package host

import (
	"net/http"
	"sync"

	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/util"
)

// maxTransactionBytes is the largest body of a transaction, 25 MiB: every PDU and EDU that it may have at
// 64 KiB each, the specification's bound of a PDU, and one message of the largest max_message_bytes
// that can be configured. An EDU that is larger than this server's own bound is passed over alone.
const maxTransactionBytes = (maxPDUs+maxEDUs)*(64<<10) + 16<<20

// maxTransactionNesting bounds the sizes of all objects and arrays of a transaction together. The host sorts the keys of whatever anybody sends
// before it looks at the signature, and copies each object for that: 25 MiB in 9,000 levels would take it minutes, while they take
// room from other servers. It has room for PDUs of 64 KiB in the 10,000 levels that encoding/json reads, since who sends such to a room must not
// hold up what their server sends beside it, for every EDU with contents of types.MaxContentDepth, and for one message of the largest
// max_message_bytes.
const maxTransactionNesting = maxPDUs*(64<<10)*10_000 + 25e8

// withBoundedBody keeps the handler from reading a body of more than maxTransactionBytes or maxTransactionNesting, and many bodies at
// once, which the host would read from anybody before it asks for a signature.
func withBoundedBody(hold holdBody, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.Body = body{req.Body, w}
		release, refusal := hold(req, maxTransactionBytes, maxTransactionNesting)
		if refusal != nil {
			httputil.MakeExternalAPI("federation_send", func(*http.Request) util.JSONResponse { return *refusal }).ServeHTTP(w, req)
			return
		}
		defer release()
		handler.ServeHTTP(w, req)
	})
}

// holdBody is Module.HoldBody.
type holdBody func(req *http.Request, limit int, mostNesting int64) (release func(), refusal *util.JSONResponse)

// underWay counts what is under way for each server. Servers with nothing under way take no memory.
type underWay struct {
	most, mostBytes int

	mu    sync.Mutex
	count map[string]counted
}

type counted struct{ transactions, bytes int }

// newUnderWay bounds the transactions of each server, and their size together unless it is only one.
func newUnderWay(most, mostBytes int) *underWay {
	return &underWay{most: most, mostBytes: mostBytes, count: make(map[string]counted)}
}

// begin returns false if a transaction is one too many for its server, or too large beside the others; otherwise end must be called.
func (u *underWay) begin(origin string, bytes int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.count[origin]
	if c.transactions == u.most || c.transactions > 0 && c.bytes+bytes > u.mostBytes {
		return false
	}
	u.count[origin] = counted{c.transactions + 1, c.bytes + bytes}
	return true
}

func (u *underWay) end(origin string, bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.count[origin]
	if c = (counted{c.transactions - 1, c.bytes - bytes}); c.transactions == 0 {
		delete(u.count, origin)
	} else {
		u.count[origin] = c
	}
}
