package trace

import "github.com/sirupsen/logrus"

// fields are what a record has in the log, under the names of the admin API.
func (r *Record) fields() logrus.Fields {
	fields := logrus.Fields{"step": string(r.Step)}
	for name, text := range map[string]string{
		"reason": string(r.Reason), "user_id": r.Recipient.UserID, "device_id": r.Recipient.DeviceID,
		"sender": r.Sender, "type": r.Type, "message_id": r.MessageID, "edu_id": r.EDUID,
		"transaction_id": r.TransactionID, "origin": r.Origin, "destination": r.Destination,
	} {
		if text != "" {
			fields[name] = clip(text)
		}
	}
	if r.Position != 0 {
		fields["position"] = int64(r.Position)
	}
	if r.Count != 0 {
		fields["count"] = r.Count
	}
	return fields
}
