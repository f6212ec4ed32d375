package admin

import (
	"fmt"
	"slices"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

var orders = map[string]storage.Order{"size": storage.BySize, "age": storage.ByAge}

// queueCursor is where a page of queues ended.
type queueCursor struct {
	Order    storage.Order `json:"o"`
	UserID   string        `json:"u"`
	DeviceID string        `json:"d"`
	Messages int           `json:"m"`
	Oldest   int64         `json:"p"`
}

func (a *API) queues(c *call) util.JSONResponse {
	return a.answer(a.readQueues(c))
}

func (a *API) readQueues(c *call) (*Queues, error) {
	var from *queueCursor
	limit, err := c.page(&from, "order")
	if err != nil {
		return nil, err
	}
	order, known := orders[c.query.Get("order")] // BySize, the zero value, without one
	if !known && c.query.Has("order") {
		return nil, invalidParam("order must be size or age.")
	}
	var after *storage.Queue
	if from != nil {
		device := types.Device{UserID: from.UserID, DeviceID: from.DeviceID}
		if from.Order != order || !storage.Storable(device) {
			return nil, invalidCursor()
		}
		after = &storage.Queue{Device: device, Messages: from.Messages, Oldest: types.Position(from.Oldest)}
	}
	found, err := a.Store.Queues(c, order, after, limit+1)
	if err != nil {
		return nil, err
	}
	found, more := cut(found, limit)
	res := &Queues{Queues: make([]Queue, 0, len(found))}
	for _, q := range found {
		res.Queues = append(res.Queues, Queue{
			UserID: q.UserID, DeviceID: q.DeviceID, Messages: q.Messages, Bytes: q.Bytes, Oldest: a.oldest(q.Oldest),
		})
	}
	if more {
		last := found[len(found)-1]
		res.Next = cursor(queueCursor{order, last.UserID, last.DeviceID, last.Messages, int64(last.Oldest)})
	}
	return res, nil
}

func (a *API) queue(c *call) util.JSONResponse {
	return a.answer(a.readQueue(c))
}

func (a *API) readQueue(c *call) (*Messages, error) {
	device, err := c.device()
	if err != nil {
		return nil, err
	}
	after, limit, err := c.positionPage()
	if err != nil {
		return nil, err
	}
	found, err := a.Store.Envelopes(c, device, after, limit+1)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		if err = a.exists(c, device); err != nil {
			return nil, err
		}
	}
	found, more := cut(found, limit)
	res := &Messages{Messages: make([]Message, 0, len(found))}
	for _, e := range found {
		m := Message{Position: int64(e.Position), Sender: e.Sender, Type: e.Type, MessageID: e.MessageID, Bytes: e.Bytes}
		m.TS, m.AgeSeconds = a.age(e.Position)
		res.Messages = append(res.Messages, m)
	}
	if more {
		res.Next = cursor(found[len(found)-1].Position)
	}
	return res, nil
}

func (a *API) purgeUser(c *call) util.JSONResponse {
	return a.answer(a.deleteQueues(c))
}

func (a *API) deleteQueues(c *call) (*Deleted, error) {
	userID, err := c.user()
	if err == nil {
		err = c.only()
	}
	if err != nil {
		return nil, err
	}
	through := a.Published() // for all devices: the first ones may take a while
	kept, exist, err := a.devices(c, userID)
	if err != nil {
		return nil, err
	}
	if len(kept)+len(exist) == 0 {
		return nil, notFound("%s has no device on this server, and nothing waits for one.", userID)
	}
	res := &Deleted{}
	for _, deviceID := range kept {
		deleted, err := a.purge(c, types.Device{UserID: userID, DeviceID: deviceID}, through)
		res.Deleted += deleted
		if err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (a *API) purgeDevice(c *call) util.JSONResponse {
	return a.answer(a.deleteQueue(c))
}

func (a *API) deleteQueue(c *call) (*Deleted, error) {
	device, err := c.device()
	if err == nil {
		err = c.only()
	}
	through := a.Published()
	if err == nil {
		err = a.exists(c, device)
	}
	if err != nil {
		return nil, err
	}
	deleted, err := a.purge(c, device, through)
	return &Deleted{deleted}, err
}

func (a *API) purge(c *call, device types.Device, through types.Position) (int, error) {
	deleted, err := a.Purge(c, device, through)
	if deleted > 0 {
		a.tell(c, logrus.Fields{"user_id": device.UserID, "device_id": device.DeviceID, "deleted": deleted}, "purged a queue")
	}
	return deleted, err
}

// exists returns an error unless there is such a device, or something is kept for it.
func (a *API) exists(c *call, device types.Device) error {
	kept, exist, err := a.devices(c, device.UserID)
	if err == nil && !slices.Contains(kept, device.DeviceID) && !slices.Contains(exist, device.DeviceID) {
		return notFound("%s has no device %q on this server, and nothing waits for it.", device.UserID, clip(device.DeviceID))
	}
	return err
}

// devices returns those of a user's devices for which something is kept, and those that exist.
func (a *API) devices(c *call, userID string) (kept, exist []string, err error) {
	if kept, err = a.Store.Devices(c, userID); err != nil {
		return nil, nil, err
	}
	if server, _ := wire.ServerOf(userID); !a.IsLocal(server) {
		return kept, nil, nil
	}
	if exist, err = a.UserDevices(c, userID); err != nil {
		return nil, nil, fmt.Errorf("%w which devices %s has: %w", errHost, userID, err)
	}
	return kept, exist, nil
}
