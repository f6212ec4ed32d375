package announcements

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
)

const (
	maxBodyBytes    = 16 << 10 // of a text
	maxRequestBytes = 6*maxBodyBytes + 1<<10
	maxIDBytes      = 255

	errorTooLarge spec.MatrixErrorCode = "M_TOO_LARGE"
)

// ServePut answers an administrator's PUT of {"body": "..."} under an ID. The same call again has no effect, so that one without an answer can
// be repeated. wake is called once the announcement may be there.
func (s *Store) ServePut(req *http.Request, id string, wake func()) util.JSONResponse {
	if id == "" || len(id) > maxIDBytes || !isText(id) {
		return refuse(http.StatusBadRequest, spec.ErrorInvalidParam, "The ID is empty, longer than 255 bytes, or no text.")
	}
	content, err := io.ReadAll(http.MaxBytesReader(nil, req.Body, maxRequestBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return refuse(http.StatusRequestEntityTooLarge, errorTooLarge, "The request is too large: a text may have 16 KiB.")
	case err != nil:
		return refuse(http.StatusBadRequest, spec.ErrorNotJSON, "The request could not be read to its end. Send it again.")
	case !json.Valid(content) || !utf8.Valid(content):
		return refuse(http.StatusBadRequest, spec.ErrorNotJSON, "The request is not JSON.")
	}
	var announced struct {
		Body *string `json:"body"`
	}
	switch err = json.Unmarshal(content, &announced); {
	case err != nil:
		return refuse(http.StatusBadRequest, spec.ErrorBadJSON, "The request is not an object with a string as its body.")
	case announced.Body == nil || *announced.Body == "":
		return refuse(http.StatusBadRequest, spec.ErrorMissingParam, "The request has no body.")
	case len(*announced.Body) > maxBodyBytes:
		return refuse(http.StatusRequestEntityTooLarge, errorTooLarge, "The text is longer than 16 KiB.")
	case !isText(*announced.Body):
		return refuse(http.StatusBadRequest, spec.ErrorBadJSON, "The text has a NUL in it.")
	}
	defer wake()
	switch err = s.Post(req.Context(), id, *announced.Body); {
	case errors.Is(err, ErrTaken):
		return refuse(http.StatusBadRequest, spec.ErrorInvalidParam, "Another announcement has that ID: choose another one.")
	case err != nil:
		util.GetLogger(req.Context()).WithError(err).Error("announcements: storing one failed")
		return refuse(http.StatusServiceUnavailable, spec.ErrorUnknown, "The announcement could not be stored. Send it again, under the same ID.")
	}
	return util.JSONResponse{Code: http.StatusOK, JSON: struct{}{}}
}

func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func refuse(code int, errCode spec.MatrixErrorCode, message string) util.JSONResponse {
	return util.JSONResponse{Code: code, JSON: spec.MatrixError{ErrCode: errCode, Err: message}}
}
