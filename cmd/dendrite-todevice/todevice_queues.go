package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

func statusCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "sum up what waits, and what has happened since the start",
		UsageText: "to-device status [flags]",
		Flags:     clientFlags(),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, _ []string) error {
			var s admin.Status
			if err := c.call(ctx, http.MethodGet, []string{"status"}, nil, &s); err != nil {
				return err
			}
			return t.show(cmd, s, func() { t.status(&s) })
		}, 0),
	}
}

func (t terminal) status(s *admin.Status) {
	traced := "switched off"
	if s.Trace.Capacity > 0 {
		traced = fmt.Sprintf("every step since %s", moment(s.Trace.SinceTS))
	}
	t.pairs(
		"Version", printable(s.Version),
		"Started", moment(s.StartedTS)+", "+seconds(s.UptimeSeconds)+" ago",
		"Last position", number(s.LastPosition),
		"Devices with messages", number(s.Queues.Queues),
		"Messages waiting", number(s.Queues.Messages),
		"Oldest", optional(s.Queues.OldestTS, moment),
		"EDUs for other servers", fmt.Sprintf("%d, %s", s.Outbox.Waiting, bytesOf(s.Outbox.Bytes)),
		"Oldest", optional(s.Outbox.OldestTS, moment),
		"Refused, to be sent again", number(s.Outbox.Refused),
		"Set aside", number(s.Outbox.SetAside),
		"Trace", traced,
	)
	fmt.Fprintln(t.out)
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		if s.Counters[name] != 0 {
			rows = append(rows, []string{printable(name), fmt.Sprintf("%.0f", s.Counters[name])})
		}
	}
	t.table([]string{"COUNTER, UNLESS IT IS 0", "VALUE"}, rows)
}

func queuesCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "queues",
		Usage:     "list the devices that messages wait for, or the messages of one device",
		UsageText: "to-device queues [flags] [USER DEVICE]",
		Flags: clientFlags(
			&cli.StringFlag{Name: "order", Value: "size", Usage: "size: the most messages first; age: the oldest message first"},
			limit(),
		),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, args []string) error {
			if len(args) == 2 {
				return t.queue(ctx, cmd, c, args)
			}
			return t.queues(ctx, cmd, c)
		}, 0, 2),
	}
}

func limit() cli.Flag {
	return &cli.IntFlag{Name: limitFlag, Value: 100, Usage: "how many are listed at the most", Validator: func(n int) error {
		if n < 1 {
			return fmt.Errorf("must be at least 1")
		}
		return nil
	}}
}

// pages calls fetch for one page after the other until it has as many entries as are wanted. It tells if there are more.
func pages(cmd *cli.Command, query url.Values, fetch func(url.Values) (entries int, next string, err error)) (more bool, err error) {
	for left := cmd.Int(limitFlag); left > 0; {
		query.Set("limit", number(min(left, admin.MaxLimit)))
		n, next, err := fetch(query)
		if err != nil || next == "" {
			return false, err
		}
		if n == 0 {
			return false, exit(exitFailed, "%w: an empty page is not the last one", errAnswer)
		}
		left -= n
		query.Set("after", next)
	}
	return true, nil
}

func (t terminal) queues(ctx context.Context, cmd *cli.Command, c *client) error {
	all := admin.Queues{Queues: []admin.Queue{}}
	more, err := pages(cmd, url.Values{"order": {cmd.String("order")}}, func(query url.Values) (int, string, error) {
		var page admin.Queues
		err := c.call(ctx, http.MethodGet, []string{"queues"}, query, &page)
		all.Queues, all.Next = append(all.Queues, page.Queues...), page.Next
		return len(page.Queues), page.Next, err
	})
	if err != nil {
		return err
	}
	return t.show(cmd, all, func() {
		var rows [][]string
		for _, q := range all.Queues {
			rows = append(rows, []string{
				printable(q.UserID), printable(q.DeviceID), number(q.Messages), bytesOf(q.Bytes),
				optional(q.OldestTS, moment), optional(q.AgeSeconds, seconds),
			})
		}
		t.table([]string{"USER", "DEVICE", "MESSAGES", "SIZE", "OLDEST", "AGE"}, rows)
		t.tellMore(more)
	})
}

func (t terminal) tellMore(more bool) {
	if more {
		fmt.Fprintf(t.err, "There are more; -%s lists them.\n", limitFlag)
	}
}

func (t terminal) queue(ctx context.Context, cmd *cli.Command, c *client, device []string) error {
	all := admin.Messages{Messages: []admin.Message{}}
	more, err := pages(cmd, url.Values{}, func(query url.Values) (int, string, error) {
		var page admin.Messages
		err := c.call(ctx, http.MethodGet, []string{"queues", device[0], device[1]}, query, &page)
		all.Messages, all.Next = append(all.Messages, page.Messages...), page.Next
		return len(page.Messages), page.Next, err
	})
	if err != nil {
		return err
	}
	return t.show(cmd, all, func() {
		var rows [][]string
		for _, m := range all.Messages {
			rows = append(rows, []string{
				number(m.Position), optional(m.TS, moment), optional(m.AgeSeconds, seconds), printable(m.Sender), printable(m.Type),
				bytesOf(int64(m.Bytes)), printable(m.MessageID),
			})
		}
		t.table([]string{"POSITION", "STORED", "AGE", "SENDER", "TYPE", "SIZE", "MESSAGE ID"}, rows)
		t.tellMore(more)
	})
}

func purgeCommand(t terminal) *cli.Command {
	return &cli.Command{
		Name:      "purge",
		Usage:     "delete what waits for a device, or for all devices of a user",
		UsageText: "to-device purge [flags] USER [DEVICE]",
		Flags:     clientFlags(yes()),
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, args []string) error {
			what := "what waits for " + printable(args[0])
			if len(args) == 2 {
				what += " " + printable(args[1])
			}
			if err := t.confirm(ctx, cmd, "Delete "+what+"? Nobody will get it."); err != nil {
				return err
			}
			var res admin.Deleted
			if err := c.call(ctx, http.MethodDelete, append([]string{"queues"}, args...), nil, &res); err != nil {
				return err
			}
			return t.show(cmd, res, func() { t.pairs("Messages deleted", number(res.Deleted)) })
		}, 1, 2),
	}
}

func yes() cli.Flag { return &cli.BoolFlag{Name: yesFlag, Usage: "do not ask for confirmation"} }

// confirm asks a person, and refuses to go on without one. An interrupt is a no.
func (t terminal) confirm(ctx context.Context, cmd *cli.Command, question string) error {
	if cmd.Bool(yesFlag) {
		return nil
	}
	if !t.asks {
		return exit(exitUsage, "nothing was deleted: confirm it with -%s", yesFlag)
	}
	fmt.Fprintf(t.err, "%s [y/N] ", question)
	answered := make(chan string, 1)
	// It is the process's: nothing but an answer or the end of the process ends the read of a terminal.
	go func() {
		line, _ := bufio.NewReader(t.in).ReadString('\n')
		answered <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case answer := <-answered:
		if answer == "y" || answer == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(t.err)
	}
	return exit(exitFailed, "nothing was deleted")
}
