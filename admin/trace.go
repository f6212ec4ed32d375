package admin

import (
	"net/http"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

func (a *API) trace(c *call) util.JSONResponse {
	return a.answer(a.readTrace(c))
}

func (a *API) readTrace(c *call) (*Trace, error) {
	query, err := c.traceQuery()
	if err != nil {
		return nil, err
	}
	found := a.Find(query)
	res := &Trace{Records: make([]Record, 0, len(found.Records)), More: found.More, Coverage: coverage(found)}
	for i := range found.Records {
		res.Records = append(res.Records, record(&found.Records[i]))
	}
	return res, nil
}

func (c *call) traceQuery() (q trace.Query, err error) {
	texts := map[string]*string{
		"message_id": &q.MessageID, "edu_id": &q.EDUID, "user_id": &q.Device.UserID, "device_id": &q.Device.DeviceID, "sender": &q.Sender,
	}
	if err = c.only("message_id", "edu_id", "user_id", "device_id", "sender", "limit"); err != nil {
		return q, err
	}
	for name, into := range texts {
		if *into, err = c.text(name); err != nil {
			return q, err
		}
	}
	if q.Limit, err = c.limit(trace.MaxLimit, trace.DefaultLimit); err != nil {
		return q, err
	}
	if q.Device.DeviceID != "" && q.Device.UserID == "" {
		return q, refuse(http.StatusBadRequest, spec.ErrorMissingParam, "device_id takes user_id beside it: two users may have devices of one ID.")
	}
	if q.MessageID == "" && q.EDUID == "" && q.Device.UserID == "" && q.Sender == "" {
		return q, refuse(http.StatusBadRequest, spec.ErrorMissingParam, "Name at least one of message_id, edu_id, user_id and sender.")
	}
	return q, nil
}

func record(r *trace.Record) Record {
	return Record{
		TS: r.At.UnixMilli(), Step: string(r.Step), Reason: string(r.Reason),
		UserID: r.Recipient.UserID, DeviceID: r.Recipient.DeviceID, Sender: r.Sender, Type: r.Type,
		MessageID: r.MessageID, TransactionID: r.TransactionID, EDUID: r.EDUID, Origin: r.Origin, Destination: r.Destination,
		Position: int64(r.Position), Count: max(1, r.Count),
	}
}
