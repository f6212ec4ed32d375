package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// refusal is an error that is the caller's.
type refusal util.JSONResponse

func (r *refusal) Error() string { return fmt.Sprint(r.JSON) }

func refuse(status int, code spec.MatrixErrorCode, format string, args ...any) error {
	return &refusal{Code: status, JSON: spec.MatrixError{ErrCode: code, Err: fmt.Sprintf(format, args...)}}
}

func invalidParam(format string, args ...any) error {
	return refuse(http.StatusBadRequest, spec.ErrorInvalidParam, format, args...)
}

func notFound(format string, args ...any) error {
	return refuse(http.StatusNotFound, spec.ErrorNotFound, format, args...)
}

// errHost wraps a failure of the host's own database.
var errHost = errors.New("the host can't tell")

// answer is what a call answers: value, unless there was an error.
func (a *API) answer(value any, err error) util.JSONResponse {
	refused := (*refusal)(nil)
	switch {
	case err == nil:
		return util.JSONResponse{Code: http.StatusOK, JSON: value}
	case errors.As(err, &refused):
		return util.JSONResponse(*refused)
	}
	a.Log.WithError(err).Error("to_device: an administrator's call failed")
	for _, passes := range []error{
		storage.ErrTransient, writer.ErrUnavailable, writer.ErrStopped, errHost, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, passes) {
			return Unavailable()
		}
	}
	return util.JSONResponse{
		Code: http.StatusInternalServerError,
		JSON: spec.MatrixError{ErrCode: spec.ErrorUnknown, Err: "Internal server error. The log says more."},
	}
}

// Unavailable is the answer while a database is away. It is for the host too, which looks up who calls.
func Unavailable() util.JSONResponse {
	return util.JSONResponse{
		Code:    http.StatusServiceUnavailable,
		JSON:    spec.MatrixError{ErrCode: spec.ErrorUnknown, Err: "The server can't reach its database at the moment. Try again; the log says more."},
		Headers: map[string]string{"Retry-After": "1"},
	}
}
