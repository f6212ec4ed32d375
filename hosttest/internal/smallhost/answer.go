package smallhost

import (
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
)

// maxRequestBytes bounds the bodies that the host reads by itself.
const maxRequestBytes = 1 << 20

// handler answers a request.
type handler func(w http.ResponseWriter, req *http.Request) util.JSONResponse

func (f handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	req.Body = body{req.Body, w}
	res := f(w, req)
	w.Header().Set("Content-Type", "application/json")
	for key, value := range res.Headers {
		w.Header().Set(key, value)
	}
	w.WriteHeader(res.Code)
	_ = json.NewEncoder(w).Encode(res.JSON) // of which nobody would learn
}

// body is a request's body of which a Read that hangs can be ended, so that the module may take its room for others.
type body struct {
	io.ReadCloser
	w http.ResponseWriter
}

func (b body) SetReadDeadline(deadline time.Time) error {
	return http.NewResponseController(b.w).SetReadDeadline(deadline)
}

func ok(json any) util.JSONResponse {
	return util.JSONResponse{Code: http.StatusOK, JSON: json}
}

func refuse(status int, code spec.MatrixErrorCode, message string) util.JSONResponse {
	return util.JSONResponse{Code: status, JSON: spec.MatrixError{ErrCode: code, Err: message}}
}

func unknownRoute(http.ResponseWriter, *http.Request) util.JSONResponse {
	return refuse(http.StatusNotFound, spec.ErrorUnrecognized, "There is no such endpoint on this server.")
}

// read decodes the body of a request, which may be empty.
func read(req *http.Request, into any) *util.JSONResponse {
	text, err := io.ReadAll(io.LimitReader(req.Body, maxRequestBytes))
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		res := refuse(http.StatusBadRequest, spec.ErrorBadJSON, "The body is not what this endpoint takes.")
		return &res
	}
	return nil
}
