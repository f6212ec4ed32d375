package admin_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func user(name string) string { return "@" + name + ":" + here }

func device(name, deviceID string) types.Device {
	return types.Device{UserID: user(name), DeviceID: deviceID}
}

func queuePath(d types.Device) string {
	return "/queues/" + url.PathEscape(d.UserID) + "/" + url.PathEscape(d.DeviceID)
}

func ids(queues []admin.Queue) string {
	var names []string
	for _, q := range queues {
		names = append(names, q.DeviceID)
	}
	return strings.Join(names, " ")
}

func TestQueuesBySizeAndByAge(t *testing.T) {
	each(t, func(f *fixture) {
		few, many, old := device("bob", "FEW"), device("bob", "MANY"), device("carol", "OLD")
		f.add(message{few, at(60), ""}, message{old, 42, ""}, message{old, 43, ""})
		for i := range 5 {
			f.add(message{many, at(30) + types.Position(i), ""})
		}
		for query, order := range map[string]string{"": "MANY OLD FEW", "order=size": "MANY OLD FEW", "order=age": "OLD FEW MANY"} {
			if got := want[admin.Queues](f, "GET", "/queues?"+query); ids(got.Queues) != order || got.Next != "" {
				f.Errorf("%s: %+v", query, got)
			}
			var paged []admin.Queue
			for after := ""; ; {
				page := want[admin.Queues](f, "GET", "/queues?limit=1&"+query+after)
				if paged = append(paged, page.Queues...); page.Next == "" || len(page.Queues) != 1 {
					break
				}
				after = "&after=" + page.Next
			}
			if ids(paged) != order {
				f.Errorf("%s, in pages: %s", query, ids(paged))
			}
		}
		got := want[admin.Queues](f, "GET", "/queues?order=age").Queues
		if q := got[0]; q.UserID != old.UserID || q.Messages != 2 || *q.OldestPosition != 42 || q.OldestTS != nil || q.AgeSeconds != nil {
			f.Errorf("a queue from before the module: %+v", q)
		}
		size := int64(len(fmt.Sprintf(`{"body":%q,"org.matrix.msgid":""}`, canary)))
		if q := got[1]; q.Bytes != size || *q.OldestTS != now.UnixMilli()-60_000 || *q.AgeSeconds != 60 {
			f.Errorf("%+v", q)
		}
	})
}

func TestQueueOfADevice(t *testing.T) {
	each(t, func(f *fixture) {
		d := device("bob", "a/b%2F c?\u00e9")
		f.add(message{d, 42, "first"}, message{d, at(5), ""}, message{d, at(3), "third"})
		got := want[admin.Messages](f, "GET", queuePath(d))
		if len(got.Messages) != 3 || got.Next != "" {
			f.Fatalf("%+v", got)
		}
		first, second := got.Messages[0], got.Messages[1]
		if first.Position != 42 || first.Sender != user("alice") || first.Type != "m.test" || first.MessageID != "first" || first.TS != nil || first.AgeSeconds != nil {
			f.Errorf("%+v", first)
		}
		if second.MessageID != "" || *second.TS != now.UnixMilli()-5000 || *second.AgeSeconds != 5 || second.Bytes == 0 {
			f.Errorf("%+v", second)
		}
		page := want[admin.Messages](f, "GET", queuePath(d)+"?limit=2")
		rest := want[admin.Messages](f, "GET", queuePath(d)+"?limit=2&after="+page.Next)
		if len(page.Messages) != 2 || len(rest.Messages) != 1 || rest.Messages[0].MessageID != "third" || rest.Next != "" {
			f.Errorf("pages: %+v %+v", page, rest)
		}
		f.refused("GET", queuePath(device("bob", "OTHER")), http.StatusNotFound, "M_NOT_FOUND")
		f.devices[user("bob")] = []string{"OTHER"}
		if empty := want[admin.Messages](f, "GET", queuePath(device("bob", "OTHER"))); empty.Messages == nil || len(empty.Messages) != 0 {
			f.Errorf("%+v", empty)
		}
	})
}

func TestPurge(t *testing.T) {
	each(t, func(f *fixture) {
		one, two, other := device("bob", "a/%"), device("bob", "TWO"), device("carol", "ONE")
		f.purge = at(2)
		f.add(message{one, at(9), ""}, message{two, at(8), ""}, message{other, at(7), ""}, message{one, at(6), ""}, message{one, at(1), "later"})
		if got := want[admin.Deleted](f, "DELETE", queuePath(one)); got.Deleted != 2 {
			f.Errorf("deleted: %d", got.Deleted)
		}
		if left := want[admin.Messages](f, "GET", queuePath(one)).Messages; len(left) != 1 || left[0].MessageID != "later" {
			f.Errorf("left: %+v", left)
		}
		for _, field := range []string{`admin="@admin:here.example.org"`, "deleted=2", "user_id=", "device_id="} {
			if !strings.Contains(f.log.String(), field) {
				f.Errorf("%s is not in the log:\n%s", field, f.log.String())
			}
		}
		f.purge = at(0)
		if got := want[admin.Deleted](f, "DELETE", "/queues/"+url.PathEscape(user("bob"))); got.Deleted != 2 {
			f.Errorf("deleted: %d", got.Deleted)
		}
		if left := want[admin.Queues](f, "GET", "/queues").Queues; ids(left) != "ONE" {
			f.Errorf("left: %+v", left)
		}
		f.refused("DELETE", queuePath(one), http.StatusNotFound, "M_NOT_FOUND")
		f.refused("DELETE", "/queues/"+url.PathEscape(user("bob")), http.StatusNotFound, "M_NOT_FOUND")
		f.refused("DELETE", "/queues/@bob:"+there, http.StatusNotFound, "M_NOT_FOUND")
		f.devices[user("bob")] = []string{one.DeviceID}
		for _, path := range []string{queuePath(one), "/queues/" + url.PathEscape(user("bob"))} {
			if got := want[admin.Deleted](f, "DELETE", path); got.Deleted != 0 {
				f.Errorf("deleted: %d", got.Deleted)
			}
		}
		f.refused("DELETE", queuePath(two), http.StatusNotFound, "M_NOT_FOUND")
	})
}

// What is stored for one device while another one's queue is purged stays.
func TestPurgeOfAUserSparesWhatIsStoredLater(t *testing.T) {
	each(t, func(f *fixture) {
		one, two := device("bob", "ONE"), device("bob", "TWO")
		f.add(message{one, at(60), ""}, message{two, at(50), ""})
		f.options.Published = func() types.Position { return f.last }
		f.options.Purge = func(ctx context.Context, d types.Device, through types.Position) (int, error) {
			deleted, err := f.store.Purge(ctx, d, through)
			if d == one {
				f.add(message{two, f.last + 1, "later"})
			}
			return deleted, err
		}
		if got := want[admin.Deleted](f, "DELETE", "/queues/"+url.PathEscape(user("bob"))); got.Deleted != 2 {
			f.Errorf("deleted: %d", got.Deleted)
		}
		if left := want[admin.Messages](f, "GET", queuePath(two)).Messages; len(left) != 1 || left[0].MessageID != "later" {
			f.Errorf("left: %+v", left)
		}
	})
}

// What is stored while the host is asked for the device stays too.
func TestPurgeOfADeviceSparesWhatIsStoredLater(t *testing.T) {
	f := onSQLite(t)
	bobs := device("bob", "ONE")
	f.add(message{bobs, at(60), ""})
	f.options.Published = func() types.Position { return f.last }
	f.options.UserDevices = func(context.Context, string) ([]string, error) {
		f.add(message{bobs, f.last + 1, "later"})
		return nil, nil
	}
	if got := want[admin.Deleted](f, "DELETE", queuePath(bobs)); got.Deleted != 1 {
		f.Errorf("deleted: %d", got.Deleted)
	}
}
