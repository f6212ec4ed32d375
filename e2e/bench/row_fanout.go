package main

import (
	"bytes"
	"context"
	"time"
)

const (
	crowdDevices = 20 // of each user
	fanOutUsers  = 50
	fanOutRounds = 15
)

// newCrowd makes a backlog at a crowd of devices. If everyDevice is set its requests name users, not devices.
func newCrowd(ctx context.Context, b *bench, of *homeserver, senders, users, checked int, byUser bool) (*backlog, error) {
	b.progress.say("makes %d devices", users*crowdDevices)
	crowd, err := of.users(ctx, b, users, crowdDevices)
	if err != nil {
		return nil, err
	}
	others, err := of.users(ctx, b, senders+1, 1)
	if err != nil {
		return nil, err
	}
	names := crowd
	if byUser {
		names = nil
		for i := 0; i < len(crowd); i += crowdDevices {
			names = append(names, &device{user: crowd[i].user, id: everyDevice})
		}
	}
	for _, d := range crowd[:checked] {
		if err = d.settle(ctx, nil); err != nil {
			return nil, err
		}
	}
	return newBacklog(others[:senders], names, crowd[:checked], others[senders]), nil
}

// measureFanOut measures how long one request to 1,000 devices takes, each with a content of its own, and checks that all
// copies arrive.
func measureFanOut(ctx context.Context, s *stage) ([]*result, error) {
	const name = "fan-out"
	found, crowds := figures{}, map[side]*backlog{}
	took := map[side][]time.Duration{}
	err := s.inTurn(ctx, alone, name, 1, func(_ int, of *server) (err error) {
		crowds[of.side], err = newCrowd(ctx, s.b, of.homeserver, 1, fanOutUsers, fanOutUsers*crowdDevices, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.inTurn(ctx, alone, name, fanOutRounds, func(_ int, of *server) error {
		f := crowds[of.side]
		var body bytes.Buffer
		data := request(&body, f.book.next(0), f.names)
		begun := time.Now()
		if err := f.put(ctx, 0, data); err != nil {
			return err
		}
		took[of.side] = append(took[of.side], time.Since(begun))
		found.of(of.side).add(milliseconds(time.Since(begun)))
		// Some servers go on with it after the answer: that is not to slow down the next one measured.
		_, err := f.fill(ctx, s.b, 0, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.inTurn(ctx, alone, name, 1, func(_ int, of *server) error {
		f, fig := crowds[of.side], found.of(of.side)
		fig.Details = newSpread(took[of.side])
		s.b.progress.say("median of %d: %.1f ms", fanOutRounds, fig.Value)
		if of.pprof != "" {
			wait := s.b.profile(ctx, name, s.b.length, of)
			if _, err := f.fill(ctx, s.b, 1<<30, s.b.length); err != nil {
				return err
			}
			if err := wait(); err != nil {
				return err
			}
		}
		w, checked, err := f.drain(ctx, s.b, s.b.patience)
		if fig.Wrong = w; !checked {
			fig.Note = "arrival not checked"
		}
		return err
	})
	return []*result{{
		Row: name, Database: s.db, Title: "one request to 1,000 devices", Unit: "ms", Less: true, Sides: found,
		Target: onDatabase(s.db, target{Times: 20, AtMost: 50}, target{Times: 10}),
	}}, err
}
