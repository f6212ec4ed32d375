package outbox

import (
	"bytes"
	"encoding/json"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// DoorbellType is the event type of a doorbell: a to-device message that the host sends to a
// destination, so that it begins a transaction. No doorbell leaves the server: Send takes them out.
const DoorbellType = "org.matrix.dendrite.todevice.doorbell"

// IsDoorbell reports whether an EDU of the host's is a doorbell.
func IsDoorbell(edu gomatrixserverlib.EDU) bool {
	if edu.Type != spec.MDirectToDevice || !bytes.Contains(edu.Content, []byte(DoorbellType)) {
		return false
	}
	var content struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(edu.Content, &content) == nil && content.Type == DoorbellType
}

// withoutDoorbells returns the transaction without its doorbells, and whether there were any. The slice
// of EDUs is not changed: the host may send it again.
func withoutDoorbells(t gomatrixserverlib.Transaction) (gomatrixserverlib.Transaction, bool) {
	var others []gomatrixserverlib.EDU
	for _, edu := range t.EDUs {
		if !IsDoorbell(edu) {
			others = append(others, edu)
		}
	}
	rung := len(others) < len(t.EDUs)
	t.EDUs = others
	return t, rung
}
