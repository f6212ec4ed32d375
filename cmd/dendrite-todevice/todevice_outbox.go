package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

func outboxCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "outbox",
		Usage:     "list the servers that messages are kept for, or what one server refused",
		UsageText: "to-device outbox [flags] [SERVER]",
		Flags:     clientFlags(limit()),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, args []string) error {
			if len(args) == 1 {
				return t.destination(ctx, cmd, c, args[0])
			}
			return t.outbox(ctx, cmd, c)
		}, 0, 1),
	}
}

func (t terminal) outbox(ctx context.Context, cmd *cli.Command, c *client) error {
	all := admin.Destinations{Destinations: []admin.Destination{}}
	more, err := pages(cmd, url.Values{}, func(query url.Values) (int, string, error) {
		var page admin.Destinations
		err := c.call(ctx, http.MethodGet, []string{"outbox"}, query, &page)
		all.Destinations, all.Next = append(all.Destinations, page.Destinations...), page.Next
		return len(page.Destinations), page.Next, err
	})
	if err != nil {
		return err
	}
	return t.show(cmd, all, func() {
		t.destinations(all.Destinations)
		t.tellMore(more)
	})
}

func (t terminal) destinations(all []admin.Destination) {
	var rows [][]string
	for i := range all {
		d := &all[i]
		state := strings.ReplaceAll(d.State, "_", " ")
		if d.UntilTS != nil {
			state += " until " + moment(*d.UntilTS)
		}
		failure := none
		if f := d.LastError; f != nil {
			failure = moment(f.TS) + " " + answer(f.Answer)
		}
		rows = append(rows, []string{
			printable(d.Destination), number(d.Waiting), bytesOf(d.Bytes), optional(d.AgeSeconds, seconds),
			number(d.Refused), number(d.SetAside), printable(state), failure,
		})
	}
	t.table([]string{"SERVER", "WAITING", "SIZE", "AGE", "REFUSED", "SET ASIDE", "STATE", "LAST ERROR"}, rows)
}

func answer(a admin.Answer) string {
	var parts []string
	if a.Status != 0 {
		parts = append(parts, number(a.Status))
	}
	for _, text := range []string{a.ErrCode, a.Error} {
		if text != "" {
			parts = append(parts, printable(text))
		}
	}
	return strings.Join(parts, " ")
}

func (t terminal) destination(ctx context.Context, cmd *cli.Command, c *client, name string) error {
	all := struct {
		Destination admin.Destination `json:"destination"`
		admin.Refused
	}{Refused: admin.Refused{Refused: []admin.Refusal{}}}
	if err := c.call(ctx, http.MethodGet, []string{"outbox", name}, nil, &all.Destination); err != nil {
		return err
	}
	more, err := pages(cmd, url.Values{}, func(query url.Values) (int, string, error) {
		var page admin.Refused
		err := c.call(ctx, http.MethodGet, []string{"outbox", name, "refused"}, query, &page)
		all.Refused.Refused, all.Next = append(all.Refused.Refused, page.Refused...), page.Next
		return len(page.Refused), page.Next, err
	})
	if err != nil {
		return err
	}
	return t.show(cmd, all, func() {
		t.destinations([]admin.Destination{all.Destination})
		if len(all.Refused.Refused) == 0 {
			return
		}
		fmt.Fprintln(t.out)
		var rows [][]string
		for _, r := range all.Refused.Refused {
			again := "set aside"
			if r.RetryTS != nil {
				again = moment(*r.RetryTS)
			}
			rows = append(rows, []string{
				number(r.Position), printable(r.MessageID), number(r.Attempts), again, answer(r.Answer),
			})
		}
		t.table([]string{"POSITION", "MESSAGE ID", "ATTEMPTS", "SENT AGAIN", "ANSWER"}, rows)
		t.tellMore(more)
	})
}

func retryCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "retry",
		Usage:     "try a server again now, with all that it refused or with one of them",
		UsageText: "to-device retry [flags] SERVER [POSITION]",
		Flags:     clientFlags(),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, args []string) error {
			var res admin.Retried
			if err := c.call(ctx, http.MethodPost, append(refusedPath(args), "retry"), nil, &res); err != nil {
				return err
			}
			return t.show(cmd, res, func() { t.pairs("Refused messages sent again", number(res.Retried)) })
		}, 1, 2),
	}
}

// refusedPath names a destination, or one of the EDUs that it refused.
func refusedPath(args []string) []string {
	if len(args) == 1 {
		return []string{"outbox", args[0]}
	}
	return []string{"outbox", args[0], "refused", args[1]}
}

func discardCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "discard",
		Usage:     "delete what a server refused: all of it, or one message",
		UsageText: "to-device discard [flags] SERVER [POSITION]",
		Flags:     clientFlags(yes()),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, args []string) error {
			what, target := "everything", append(refusedPath(args), "refused")
			if len(args) == 2 {
				what, target = "message "+printable(args[1]), refusedPath(args)
			}
			if err := t.confirm(ctx, cmd, "Delete "+what+" that "+printable(args[0])+" refused? Nobody will get it."); err != nil {
				return err
			}
			var res admin.Discarded
			if err := c.call(ctx, http.MethodDelete, target, nil, &res); err != nil {
				return err
			}
			return t.show(cmd, res, func() { t.pairs("Refused messages deleted", number(res.Discarded)) })
		}, 1, 2),
	}
}
