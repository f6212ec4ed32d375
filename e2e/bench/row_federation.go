package main

import (
	"context"
	"fmt"
)

// federationRequests is how many requests may be on their way to the other server at least before the senders wait. Without
// a bound they only fill the queue to it, and take the processors from what empties that.
const federationRequests = 100

// measureFederation counts what is delivered from one server to another of the same kind, with one device a request and with
// twenty.
func measureFederation(ctx context.Context, s *stage) ([]*result, error) {
	var all []*result
	for _, devices := range []int{1, throughputReceivers} {
		name, found := fmt.Sprintf("federation-%d", devices), figures{}
		loads := map[side]*load{}
		err := s.inTurn(ctx, here, name, s.b.rounds, func(_ int, from *server) error {
			to, err := s.server(ctx, from.side, there)
			if err != nil {
				return err
			}
			l := loads[from.side]
			if l == nil {
				if l, err = newThroughputLoad(ctx, s.b, from.homeserver, to.homeserver); err != nil {
					return err
				}
				l.devices, l.window = devices, max(s.b.window, int64(federationRequests*devices))
				loads[from.side] = l
			}
			out, err := s.b.runLoad(ctx, name, l, from, to)
			if err != nil {
				return err
			}
			found.of(from.side).add(out.Delivered)
			found.of(from.side).addOutcome(out)
			return nil
		})
		if err != nil {
			return all, err
		}
		title := "two servers, one device a request"
		if devices > 1 {
			title = fmt.Sprintf("two servers, %d devices a request", devices)
		}
		all = append(all, &result{
			Row: "federation", Database: s.db, Title: title, Unit: "messages/s", Sides: found,
			Target: onDatabase(s.db, target{Times: 8}, target{Times: 5}),
		})
	}
	return all, nil
}
