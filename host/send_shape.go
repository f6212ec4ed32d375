package host

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

// maxMembers bounds the members of a transaction, of which the specification has four.
const maxMembers = 100

var errTooManyParts = errors.New("the transaction has more parts than it may have")

// checkParts returns errTooManyParts for what no decoder is to see: the six million PDUs that 12 MiB have room for cost the host 2 GiB
// and 8 seconds before it counts them. It looks at every list that the host's decoder takes for one of PDUs or EDUs.
func checkParts(transaction wire.Valid) (err error) {
	members := 0
	transaction.Each(func(key string, value wire.Valid) bool {
		members++
		switch {
		case members > maxMembers,
			strings.EqualFold(key, "pdus") && isLonger(value, maxPDUs),
			strings.EqualFold(key, "edus") && isLonger(value, maxEDUs):
			err = errTooManyParts
		}
		return err == nil
	})
	return err
}

func isLonger(list wire.Valid, most int) bool {
	items := 0
	list.Each(func(string, wire.Valid) bool {
		items++
		return items <= most
	})
	return items > most
}

// tooManyParts has the status and the code of the host's answer.
func tooManyParts() util.JSONResponse {
	return util.JSONResponse{
		Code: http.StatusBadRequest,
		JSON: spec.BadJSON(fmt.Sprintf("A transaction may have %d PDUs, %d EDUs and %d members.", maxPDUs, maxEDUs, maxMembers)),
	}
}
