package smallhost

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func storageFaults() map[string][]Fault {
	return map[string][]Fault{
		"the-store-is-kept": {
			emptying("messages are deleted at a start", "todevice_messages"),
			emptying("transaction IDs are deleted at a start", "todevice_transactions"),
		},
		"a-second-server-is-refused": {{What: "nothing is locked", breaks: func(h *host, b *broken) {
			b.host.store = func(config todevicemodule.DatabaseConfig) (storage.Store, error) {
				store, err := h.Store(config)
				return unlockedStore{store}, err
			}
		}}},
		"the-module-is-stopped-first": {
			{What: "the module is not stopped", breaks: func(h *host, b *broken) {
				b.calls.stop = func(context.Context) error { return nil }
			}},
			{What: "the database is closed first", breaks: func(h *host, b *broken) {
				b.calls.stop = func(ctx context.Context) error { return errors.Join(h.db.Close(), b.module.Stop(ctx)) }
			}},
		},
		"a-stop-loses-nothing": {{What: "each request is stored with the next one of its device", breaks: storeLate}},
		"the-database-is-opened-once": {{What: "the store is asked for twice", breaks: func(_ *host, b *broken) {
			b.asks.store = func(config todevicemodule.DatabaseConfig) (storage.Store, error) {
				if _, err := b.asks.Host.Store(config); err != nil {
					return nil, err
				}
				return b.asks.Host.Store(config)
			}
		}}},
	}
}

// emptying is a fault that loses what is in a table.
func emptying(what, table string) Fault {
	return Fault{What: what, breaks: func(h *host, b *broken) {
		b.host.store = func(config todevicemodule.DatabaseConfig) (storage.Store, error) {
			store, err := h.Store(config)
			return emptiedStore{store, h, table}, err
		}
	}}
}

// emptiedStore loses what is in a table at each start.
type emptiedStore struct {
	storage.Store
	h     *host
	table string
}

func (s emptiedStore) Migrate(ctx context.Context) error {
	if err := s.Store.Migrate(ctx); err != nil {
		return err
	}
	_, err := s.h.db.ExecContext(ctx, `DELETE FROM `+s.table)
	return err
}

// unlockedStore lets anybody in.
type unlockedStore struct{ storage.Store }

func (unlockedStore) Lock(context.Context) (storage.Lock, error) { return noLock{}, nil }

type noLock struct{}

func (noLock) Check(context.Context) error { return nil }

func (noLock) Release() error { return nil }

// storeLate answers each request at once, and has it stored when the device sends the next.
func storeLate(_ *host, b *broken) {
	var mu sync.Mutex
	late := make(map[types.Device]func())
	b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
		text, err := io.ReadAll(req.Body)
		if err != nil {
			return refuse(http.StatusBadRequest, "M_UNKNOWN", "The body did not arrive.")
		}
		whole := withBody(req.WithContext(context.WithoutCancel(req.Context())), text)
		mu.Lock()
		defer mu.Unlock()
		if before := late[device]; before != nil {
			before()
		}
		late[device] = func() { b.module.SendToDevice(whole, device, eventType, transactionID) }
		return ok(struct{}{})
	}
}
