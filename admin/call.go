package admin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

const (
	// MaxLimit is how many entries a page has at the most, and defaultLimit how many unless the caller says.
	MaxLimit     = 1000
	defaultLimit = 100
	// maxCursorBytes is what a cursor with the longest IDs takes.
	maxCursorBytes = 16 << 10
	// maxNameBytes bounds a server name, as in the store.
	maxNameBytes = 255
	// hostParameter is for the host, which takes an access token from there too.
	hostParameter = "access_token"
)

// call is one request.
type call struct {
	context.Context
	admin     string
	query     url.Values
	malformed bool // the query, as far as it is not in query
	variables map[string]string
}

// only refuses parameters that the call does not have: a misspelt one would show something else than was asked for.
func (c *call) only(names ...string) error {
	if c.malformed {
		return invalidParam("The part of the URL after the ? is not correctly percent-encoded, or has a semicolon.")
	}
	for name, values := range c.query {
		switch {
		case name == hostParameter:
		case !slices.Contains(names, name) && len(names) == 0:
			return refuse(http.StatusBadRequest, spec.ErrorUnrecognized, "The call takes no parameter %q. It takes none.", clip(name))
		case !slices.Contains(names, name):
			return refuse(http.StatusBadRequest, spec.ErrorUnrecognized, "The call takes no parameter %q. It takes %s.", clip(name), strings.Join(names, ", "))
		case len(values) > 1:
			return invalidParam("The parameter %s is there twice.", name)
		}
	}
	return nil
}

func (c *call) limit(most, fallback int) (int, error) {
	if !c.query.Has("limit") {
		return fallback, nil
	}
	limit, err := strconv.Atoi(c.query.Get("limit"))
	if err != nil || limit < 1 || limit > most {
		return 0, invalidParam("limit must be a number from 1 to %d.", most)
	}
	return limit, nil
}

// page returns the parameters of a call that is answered in pages. Cursors are made by cursor.
func (c *call) page(after any, names ...string) (limit int, err error) {
	if err = c.only(append(names, "limit", "after")...); err != nil {
		return 0, err
	}
	if limit, err = c.limit(MaxLimit, defaultLimit); err != nil || !c.query.Has("after") {
		return limit, err
	}
	cursor := c.query.Get("after")
	decoded, decodeErr := base64.RawURLEncoding.DecodeString(cursor)
	// null is taken for any value, and would be the first page.
	if decodeErr != nil || len(cursor) > maxCursorBytes || json.Unmarshal(decoded, after) != nil || string(bytes.TrimSpace(decoded)) == "null" {
		return 0, invalidCursor()
	}
	return limit, nil
}

func invalidCursor() error {
	return invalidParam("after must be the \"next\" of an answer to the same call with the same order.")
}

// cursor returns the parameter after for the page that follows an entry.
func cursor(after any) string {
	encoded, _ := json.Marshal(after) // of strings and numbers
	return base64.RawURLEncoding.EncodeToString(encoded)
}

// position is for cursors that are one.
func (c *call) positionPage() (after types.Position, limit int, err error) {
	limit, err = c.page(&after)
	if err == nil && after < 0 {
		err = invalidCursor()
	}
	return after, limit, err
}

func (c *call) user() (string, error) {
	userID := c.variables["userID"]
	if _, valid := wire.ServerOf(userID); !valid || !utf8.ValidString(userID) {
		return "", invalidParam("%q is no user ID. One looks like @localpart:server, and is percent-encoded in the path.", clip(userID))
	}
	return userID, nil
}

func (c *call) device() (types.Device, error) {
	userID, err := c.user()
	if err != nil {
		return types.Device{}, err
	}
	device := types.Device{UserID: userID, DeviceID: c.variables["deviceID"]}
	if device.DeviceID == "" || !storage.Storable(device) {
		return types.Device{}, invalidParam("The device ID is empty, too long, or no text: no such device has a queue.")
	}
	return device, nil
}

func (c *call) destination() (string, error) {
	name := c.variables["destination"]
	if name == "" || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return "", invalidParam("The destination must be a server name of at most %d bytes.", maxNameBytes)
	}
	return name, nil
}

func (c *call) position() (types.Position, error) {
	position, err := strconv.ParseInt(c.variables["position"], 10, 64)
	if err != nil || position < 1 {
		return 0, invalidParam("The position must be a number from 1 on.")
	}
	return types.Position(position), nil
}

// text returns a parameter that may be any text of at most 2,048 bytes.
func (c *call) text(name string) (string, error) {
	value := c.query.Get(name)
	switch {
	case !c.query.Has(name):
		return "", nil
	case value == "":
		return "", invalidParam("%s is empty. Leave it out if it is not to be searched for.", name)
	case len(value) > storage.MaxKeyBytes || !utf8.ValidString(value):
		return "", invalidParam("%s must be valid UTF-8 of at most %d bytes.", name, storage.MaxKeyBytes)
	}
	return value, nil
}

// clip bounds what an error repeats.
func clip(s string) string {
	const most = 255
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// cut returns the first limit entries of limit+1, and whether there are more.
func cut[T any](entries []T, limit int) ([]T, bool) {
	if len(entries) <= limit {
		return entries, false
	}
	return entries[:limit], true
}
