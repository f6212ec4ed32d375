package routing

import (
	"context"
	"errors"
	"net/http"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// maxQuoted bounds how much of an ID from outside an error repeats.
const maxQuoted = 255

func matrixError(status int, code spec.MatrixErrorCode, message string) *util.JSONResponse {
	return &util.JSONResponse{Code: status, JSON: spec.MatrixError{ErrCode: code, Err: message}}
}

func badJSON(message string) *util.JSONResponse {
	return matrixError(http.StatusBadRequest, spec.ErrorBadJSON, message)
}

func invalidParam(message string) *util.JSONResponse {
	return matrixError(http.StatusBadRequest, spec.ErrorInvalidParam, message)
}

// TooDeep is the answer to another server's request with a body that is nested too deep for its size.
func TooDeep() *util.JSONResponse {
	return badJSON("The request is nested too deep for its size. Send fewer PDUs and EDUs at once.")
}

func tooLarge(message string) *util.JSONResponse {
	return matrixError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", message)
}

// ErrorResponse is the answer to a client after an error of ours, which is always a 5xx: clients
// give up on a 4xx, and drop the keys that they meant to send.
func ErrorResponse(err error) util.JSONResponse {
	switch {
	case errors.Is(err, writer.ErrUnavailable), errors.Is(err, writer.ErrStopped), errors.Is(err, storage.ErrTransient),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return util.JSONResponse{
			Code: http.StatusServiceUnavailable,
			JSON: spec.MatrixError{
				ErrCode: spec.ErrorUnknown,
				Err:     "The server can't reach its database at the moment. Send the same request again, with the same transaction ID if it has one.",
			},
			Headers: map[string]string{"Retry-After": "1"},
		}
	default:
		return util.JSONResponse{
			Code: http.StatusInternalServerError,
			JSON: spec.MatrixError{ErrCode: spec.ErrorUnknown, Err: "Internal server error. Send the same request again later."},
		}
	}
}

func quote(id string) string {
	if len(id) > maxQuoted {
		return id[:maxQuoted] + "..."
	}
	return id
}
