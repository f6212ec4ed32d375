package remote

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// Transaction is a transaction that a server was sent.
type Transaction struct {
	ID, Origin string
	Body       []byte // as it came
	PDUs       []json.RawMessage
	EDUs       []EDU
	Arrived    time.Time

	canonical string // the body
	content   string // its PDUs and EDUs, each as canonical JSON
}

// EDU is an EDU of a transaction.
type EDU struct {
	Type     string
	Raw      json.RawMessage // all of it
	ToDevice *ToDeviceEDU    // if it is one

	canonical string
}

// ToDeviceEDU is the content of an m.direct_to_device EDU.
type ToDeviceEDU struct {
	Sender    string
	Type      string
	MessageID string `json:"message_id"`
	Messages  map[string]map[string]json.RawMessage
}

func parseTransaction(origin, id string, body []byte) (*Transaction, error) {
	var document struct {
		PDUs []json.RawMessage
		EDUs []json.RawMessage
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, err
	}
	x := &Transaction{ID: id, Origin: origin, Body: body, PDUs: document.PDUs, Arrived: time.Now()}
	canonical, err := gomatrixserverlib.CanonicalJSON(body)
	if err != nil {
		return nil, err
	}
	x.canonical = string(canonical)
	var content strings.Builder
	for i, raw := range document.PDUs {
		if canonical, err = gomatrixserverlib.CanonicalJSON(raw); err != nil {
			return nil, fmt.Errorf("PDU %d: %w", i, err)
		}
		content.Write(canonical)
	}
	for i, raw := range document.EDUs {
		edu, err := parseEDU(raw)
		if err != nil {
			return nil, fmt.Errorf("EDU %d: %w", i, err)
		}
		content.WriteString(edu.canonical)
		x.EDUs = append(x.EDUs, edu)
	}
	x.content = content.String()
	return x, nil
}

func parseEDU(raw json.RawMessage) (EDU, error) {
	var edu struct {
		Type    string `json:"edu_type"`
		Content json.RawMessage
	}
	if err := json.Unmarshal(raw, &edu); err != nil {
		return EDU{}, err
	}
	canonical, err := gomatrixserverlib.CanonicalJSON(raw)
	if err != nil {
		return EDU{}, err
	}
	parsed := EDU{Type: edu.Type, Raw: raw, canonical: string(canonical)}
	if edu.Type == spec.MDirectToDevice {
		parsed.ToDevice = &ToDeviceEDU{}
		err = json.Unmarshal(edu.Content, parsed.ToDevice)
	}
	return parsed, err
}
