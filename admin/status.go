package admin

import (
	"time"

	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

func (a *API) status(c *call) util.JSONResponse {
	return a.answer(a.readStatus(c))
}

func (a *API) readStatus(c *call) (*Status, error) {
	if err := c.only(); err != nil {
		return nil, err
	}
	totals, err := a.Store.Totals(c)
	if err != nil {
		return nil, err
	}
	info := a.Info()
	s := &Status{
		Version:       info.Version,
		StartedTS:     info.Started.UnixMilli(),
		UptimeSeconds: int64(a.Now().Sub(info.Started) / time.Second),
		LastPosition:  int64(info.LastPosition),
		Counters:      info.Counters,
	}
	s.Queues.Queues, s.Queues.Messages, s.Queues.Oldest = totals.Queues, totals.Messages, a.oldest(totals.Oldest)
	s.Outbox.Waiting, s.Outbox.Bytes, s.Outbox.Oldest = totals.Outbox.Waiting, totals.Outbox.Bytes, a.oldestEDU(totals.Outbox.Oldest)
	s.Outbox.Refused, s.Outbox.SetAside = totals.Outbox.Refused, totals.Outbox.SetAside
	s.Trace = coverage(a.Find(trace.Query{}))
	return s, nil
}

func coverage(r trace.Result) Coverage {
	return Coverage{SinceTS: r.Since.UnixMilli(), Overwritten: r.Overwritten, Capacity: r.Capacity}
}
