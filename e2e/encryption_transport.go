//go:build goolm

package e2e

import (
	"bytes"
	"io"
	"net/http"
)

// patientTransport repeats a request as it is, with its transaction ID or its since token, until there is a whole answer that says more than that
// the server is in trouble. The library itself repeats a request when there is none, but not when it breaks off.
type patientTransport struct{ server *Server }

// RoundTrip ends without an answer only with the request's context.
func (p patientTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		again := req.Clone(req.Context())
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			again.Body = body
		}
		res, err := transport.RoundTrip(again)
		if err == nil {
			var body []byte
			body, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
			res.Body = io.NopCloser(bytes.NewReader(body))
		}
		if err == nil && res.StatusCode < http.StatusInternalServerError {
			return res, nil
		}
		pause(req.Context(), p.server)
		if err = req.Context().Err(); err != nil {
			return nil, err
		}
	}
}
