package routing

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/internal/bodies"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

// maxRecipients bounds the users, and the devices, that one request names. Clients send to some hundreds at the
// most; each name may cost the host a look-up.
const maxRecipients = 10_000

// maxPathBytes bounds an event type and a transaction ID. The specification bounds event types to
// 255 bytes.
const maxPathBytes = 255

// Limits bound one request.
type Limits struct {
	MessageBytes int // one content, as canonical JSON
	RequestBytes int // the body
}

// readBody reads the body, which has to be released, up to the limit and not a byte further.
func (h *SendToDevice) readBody(req *http.Request) (*bodies.Body, *util.JSONResponse) {
	limit := h.Limits.RequestBytes
	body, err := h.Bodies.Read(req.Context(), req.Body, req.ContentLength, limit)
	if err != nil {
		return nil, BodyError(err, fmt.Sprintf("The request is larger than %d bytes. Send it in several requests, each with fewer devices.", limit))
	}
	return body, nil
}

// BodyError is the answer to a request whose body could not be read, with what to say of one that is too large.
func BodyError(err error, whenTooLarge string) (res *util.JSONResponse) {
	switch {
	case errors.Is(err, bodies.ErrTooLarge):
		res = tooLarge(whenTooLarge)
	case errors.Is(err, bodies.ErrNoRoom):
		res = matrixError(http.StatusServiceUnavailable, spec.ErrorUnknown,
			"The server has no room for this request beside others that are large, or it arrived too slowly. Send the same request again later.")
	default:
		// The connection broke, so this reaches nobody, or a proxy that may try again.
		return matrixError(http.StatusServiceUnavailable, spec.ErrorUnknown, "The request did not arrive whole. Send it again.")
	}
	// Go's server reads on before it answers, unless the connection is to be closed.
	res.Headers = map[string]string{"Connection": "close"}
	if res.Code == http.StatusServiceUnavailable {
		res.Headers["Retry-After"] = "1"
	}
	return res
}

// parseBody returns the targets that a request's body names, whoever they are.
func parseBody(body string, limits Limits) ([]devices.Target, *util.JSONResponse) {
	value, ok := wire.ParseText(body)
	switch {
	case ok:
	case utf8.ValidString(body):
		return nil, matrixError(http.StatusBadRequest, spec.ErrorNotJSON, "The request body is not JSON.")
	default:
		return nil, invalidParam("The request body is not valid UTF-8.")
	}
	request, ok, fits := value.ObjectOf(maxRecipients)
	switch {
	case !ok:
		return nil, badJSON("The request body must be a JSON object.")
	case !fits:
		return nil, tooLarge("The request body has too many members beside \"messages\". Leave them out.")
	}
	messages, ok := request["messages"]
	if !ok {
		return nil, matrixError(http.StatusBadRequest, spec.ErrorMissingParam, "The request body has no \"messages\".")
	}
	users, ok, fits := messages.ObjectOf(maxRecipients)
	switch {
	case !ok:
		return nil, badJSON("\"messages\" must be an object from user IDs to objects.")
	case !fits:
		return nil, tooMany()
	}
	targets := make([]devices.Target, 0, min(len(users), maxRecipients))
	for userID, part := range users {
		contents, ok, fits := part.ObjectOf(maxRecipients - len(targets))
		switch {
		case !ok:
			return nil, badJSON(fmt.Sprintf("messages[%q] must be an object from device IDs to contents.", quote(userID)))
		case !fits:
			return nil, tooMany()
		}
		for deviceID, value := range contents {
			content := []byte(value)
			if res := checkContent(userID, deviceID, content, limits.MessageBytes); res != nil {
				return nil, res
			}
			targets = append(targets, devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: content})
		}
	}
	return targets, nil
}

func tooMany() *util.JSONResponse {
	return tooLarge(fmt.Sprintf("The request names more than %d users or devices. Send it in several requests.", maxRecipients))
}

func checkContent(userID, deviceID string, content []byte, limit int) *util.JSONResponse {
	if content[0] != '{' {
		return badJSON(fmt.Sprintf("messages[%q][%q] must be an object.", quote(userID), quote(deviceID)))
	}
	if types.IsTooDeep(content) {
		return badJSON(fmt.Sprintf("messages[%q][%q] is nested %d levels deep; a message may be %d.",
			quote(userID), quote(deviceID), types.Depth(content), types.MaxContentDepth))
	}
	// Canonical JSON is never longer than what it was made from.
	if len(content) <= limit {
		return nil
	}
	// Compact JSON is as long as canonical JSON, which differs in the order of keys alone. To sort
	// them costs the library a copy of the rest at each level: 1 MiB in 9,000 levels took 5 seconds.
	if canonical := len(gomatrixserverlib.CompactJSON(content, make([]byte, 0, len(content)))); canonical > limit {
		return tooLarge(fmt.Sprintf("messages[%q][%q] has %d bytes of canonical JSON; a message may have %d. Nothing was sent to anyone.",
			quote(userID), quote(deviceID), canonical, limit))
	}
	return nil
}

// checkPath checks an event type or a transaction ID after percent-decoding.
func checkPath(what, value string) *util.JSONResponse {
	switch {
	case len(value) > maxPathBytes:
		return invalidParam(fmt.Sprintf("The %s has %d bytes; it may have %d.", what, len(value), maxPathBytes))
	case !utf8.ValidString(value):
		return invalidParam(fmt.Sprintf("The %s is not valid UTF-8.", what))
	case strings.ContainsRune(value, 0):
		return invalidParam(fmt.Sprintf("The %s contains a NUL character.", what))
	}
	return nil
}
