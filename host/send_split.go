package host

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

// A transaction has at most so many PDUs and EDUs (server-server API, "Transactions").
const (
	maxPDUs = 50
	maxEDUs = 100
)

// splitTransaction returns the contents of a transaction's m.direct_to_device EDUs, in their order, and a
// request with everything else. A transaction that has none, or that the host refuses, is returned as it
// is; for one with too many parts the error is errTooManyParts.
func splitTransaction(request *fclient.FederationRequest) (toDevice []json.RawMessage, rest *fclient.FederationRequest, err error) {
	if err = checkParts(wire.Valid(request.Content())); err != nil { // JSON, as the signature is good
		return nil, nil, err
	}
	// What the host would see, whose decoder takes "EDUS" for "edus" and puts together what stands there
	// twice (federationapi/routing/send.go). No such trick must get an EDU past the module.
	var host struct {
		PDUs []json.RawMessage       `json:"pdus"`
		EDUs []gomatrixserverlib.EDU `json:"edus"`
	}
	err = json.Unmarshal(request.Content(), &host)
	if err != nil || !slices.ContainsFunc(host.EDUs, isToDevice) {
		return nil, request, nil
	}
	fields, _ := wire.Valid(request.Content()).Object() // JSON, as the decoder has found
	toDevice, others, err := splitEDUs([]byte(fields["edus"]))
	if err != nil {
		return nil, nil, err
	}
	content := map[string]any{"edus": others}
	for key, value := range fields {
		if !strings.EqualFold(key, "edus") {
			content[key] = json.RawMessage(value)
		}
	}
	without := fclient.NewFederationRequest(request.Method(), request.Origin(), request.Destination(), request.RequestURI())
	return toDevice, &without, without.SetContent(content)
}

// splitEDUs returns the contents of the m.direct_to_device EDUs in a list, and the other EDUs as they came.
func splitEDUs(list []byte) (toDevice, others []json.RawMessage, err error) {
	others = []json.RawMessage{}
	if len(list) == 0 {
		return nil, others, nil
	}
	var edus []gomatrixserverlib.EDU
	if err = json.Unmarshal(list, &edus); err != nil {
		return nil, nil, err
	}
	var raws []json.RawMessage
	if slices.ContainsFunc(edus, isOther) {
		if err = json.Unmarshal(list, &raws); err != nil {
			return nil, nil, err
		}
	}
	for i, edu := range edus {
		if isToDevice(edu) {
			toDevice = append(toDevice, json.RawMessage(edu.Content))
		} else {
			others = append(others, raws[i])
		}
	}
	return toDevice, others, nil
}

func isToDevice(edu gomatrixserverlib.EDU) bool { return edu.Type == spec.MDirectToDevice }

func isOther(edu gomatrixserverlib.EDU) bool { return !isToDevice(edu) }
