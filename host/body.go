package host

import (
	"io"
	"net/http"
	"time"
)

// body is a request's body, of which a Read that hangs can be ended; see bodies.Interruptible.
type body struct {
	io.ReadCloser
	w http.ResponseWriter
}

func (b body) SetReadDeadline(deadline time.Time) error {
	return http.NewResponseController(b.w).SetReadDeadline(deadline)
}

// withInterruptibleBody hands the handler a body.
func withInterruptibleBody(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.Body = body{req.Body, w}
		handler.ServeHTTP(w, req)
	})
}
