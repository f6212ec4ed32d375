package host

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/matrix-org/util"
	"github.com/tidwall/sjson"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// UseStreams has /sync answer with further streams beside the host's. It comes before AddAllPublicRoutes, and once: another registry takes the
// place of the first one. While the module is not enabled they are not in /sync.
func (d *Dendrite) UseStreams(registry *positions.Registry) { d.streams = registry }

// serveStreams has the pool answer, with the parts of further streams and their positions in next_batch. The pool passes over what the since
// token has behind its own.
func (d *Dendrite) serveStreams(call *syncCall) util.JSONResponse {
	device := types.Device{UserID: call.device.UserID, DeviceID: call.device.ID}
	streams := d.streams.Begin(device, positions.ParseToken(call.query.Get("since")))
	defer streams.End()
	answer, news, err := d.askWithNews(call, streams)
	if answer.failed != nil {
		defer answer.failed.cancel()
	}
	if err != nil {
		if call.req.Context().Err() == nil {
			d.log.WithError(err).WithField("user_id", device.UserID).Error("to_device: a further stream can't be read for /sync")
		}
		return routing.ErrorResponse(err)
	}
	res := d.deliver(call, answer, len(news.Parts) > 0)
	if response, ok := res.JSON.(*synctypes.Response); ok {
		res.JSON = streamsResponse{response, news}
	}
	return res
}

// askWithNews has the pool answer at once where a stream has something for the device. Where something comes while the pool waits, the pool is
// asked again: nothing of its first answer has been delivered, and the same since token is answered with the same.
func (d *Dendrite) askWithNews(call *syncCall, streams *positions.Sync) (answer syncAnswer, news positions.News, err error) {
	ctx := call.req.Context()
	if news, err = streams.Read(ctx); err != nil {
		return answer, news, err
	}
	if len(news.Parts) == 0 && !d.streams.Empty() && waits(call.query.Get("timeout")) {
		interrupted, found, err := d.askUntilNews(ctx, call, streams)
		if err != nil || len(found.Parts) == 0 {
			return interrupted, news, err
		}
		defer interrupted.failed.cancel()
		news = found
	}
	if len(news.Parts) > 0 {
		call.set("timeout", "0")
	}
	return d.ask(ctx, call), news, nil
}

// waits reports whether the host waits with that timeout (syncapi/sync/request.go, getTimeout).
func waits(timeout string) bool {
	milliseconds, err := strconv.Atoi(timeout)
	return err == nil && milliseconds > 0
}

// askUntilNews has the pool answer, unless a stream has something for the device before that, or can't be read. Then there is no telling what
// the answer is worth.
func (d *Dendrite) askUntilNews(ctx context.Context, call *syncCall, streams *positions.Sync) (answer syncAnswer, news positions.News, err error) {
	waiting, cancel := context.WithCancel(ctx)
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		defer cancel()
		news, err = lookForNews(waiting, streams)
	}()
	answer = d.ask(waiting, call)
	cancel()
	<-looked
	return answer, news, err
}

// lookForNews returns the first news, an error of reading, or neither once the context has ended.
func lookForNews(ctx context.Context, streams *positions.Sync) (positions.News, error) {
	for {
		select {
		case <-ctx.Done():
			return positions.News{}, nil
		case <-streams.Woken():
		}
		news, err := streams.Read(ctx)
		if ctx.Err() != nil {
			return positions.News{}, nil
		}
		if err != nil || len(news.Parts) > 0 {
			return news, err
		}
	}
}

// streamsResponse is the host's response with the parts of further streams.
type streamsResponse struct {
	*synctypes.Response
	news positions.News
}

// MarshalJSON implements json.Marshaler.
func (r streamsResponse) MarshalJSON() ([]byte, error) {
	body, err := json.Marshal(r.Response)
	if err != nil {
		return nil, err
	}
	if body, err = sjson.SetBytes(body, "next_batch", r.news.NextBatch(r.NextBatch.String())); err != nil {
		return nil, err
	}
	for _, part := range r.news.Parts {
		if body, err = sjson.SetRawBytes(body, strings.ReplaceAll(part.Key, ".", `\.`), part.JSON); err != nil {
			return nil, err
		}
	}
	return body, nil
}
