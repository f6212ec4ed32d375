package wire

import (
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
)

// maxUserIDBytes is the specification's bound of a user ID ("User Identifiers").
const maxUserIDBytes = 255

// ServerOf returns the server name of a user ID, or false if the user ID is not a valid one.
func ServerOf(userID string) (string, bool) {
	if len(userID) > maxUserIDBytes || strings.ContainsRune(userID, 0) || !strings.HasPrefix(userID, "@") {
		return "", false
	}
	localpart, server, _ := strings.Cut(userID[1:], ":")
	_, _, valid := spec.ParseAndValidateServerName(spec.ServerName(server))
	return server, valid && localpart != ""
}
