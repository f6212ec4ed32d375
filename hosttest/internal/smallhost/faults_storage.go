package smallhost

import (
	"context"
	"errors"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func storageFaults() map[string][]Fault {
	return map[string][]Fault{
		"the-store-is-kept": {
			emptying("messages are deleted at a start", "todevice_messages",
				"an-accepted-message-is-durable", "repetitions-are-recognised", "no-since-deletes-nothing", "handed-over-is-told"),
		},
		"a-second-server-is-refused": {{What: "nothing is locked", breaks: func(h *host, b *broken) {
			b.host.store = func(config todevicemodule.DatabaseConfig) (storage.Store, error) {
				store, err := h.Store(config)
				return unlockedStore{store}, err
			}
		}}},
		"the-module-is-stopped-first": {
			{What: "the module is not stopped", Also: []string{ // all that look at what follows a restart
				"an-accepted-message-is-durable", "repetitions-are-recognised", "no-since-deletes-nothing", "tokens-ahead-hide-nothing",
				"handed-over-is-told", "the-store-is-kept",
			}, breaks: func(_ *host, b *broken) {
				b.calls.stop = func(context.Context) error { return nil }
			}},
			{What: "the database is closed first", breaks: func(h *host, b *broken) {
				b.calls.stop = func(ctx context.Context) error { return errors.Join(h.db.Close(), b.module.Stop(ctx)) }
			}},
		},
		"a-stop-loses-nothing": {{What: "what is acknowledged right before a stop is not deleted", breaks: func(h *host, b *broken) {
			b.host.store = func(config todevicemodule.DatabaseConfig) (storage.Store, error) {
				store, err := h.Store(config)
				return lateStore{store, h}, err
			}
		}}},
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
func emptying(what, table string, also ...string) Fault {
	return Fault{What: what, Also: also, breaks: func(h *host, b *broken) {
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

// lateStore deletes what was acknowledged a while later, and not at all where the host stops before.
type lateStore struct {
	storage.Store
	h *host
}

func (s lateStore) Acknowledge(ctx context.Context, acknowledged []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	const late = time.Second
	select {
	case <-time.After(late):
		return s.Store.Acknowledge(ctx, acknowledged, limit)
	case <-s.h.running.Done():
		return nil, nil
	}
}
