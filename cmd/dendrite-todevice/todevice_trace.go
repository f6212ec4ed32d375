package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

// traceFlags are the parameters of the call by the flags that stand for them.
var traceFlags = []struct{ flag, parameter, usage string }{
	{"message-id", "message_id", "the org.matrix.msgid of the content, as clients log it"},
	{"edu-id", "edu_id", "the message_id of the EDU from or to another server"},
	{"user", "user_id", "the recipient's user ID"},
	{"device", "device_id", "the recipient's device ID, beside -user"},
	{"sender", "sender", "the sender's user ID"},
}

func traceCommand(t terminal) *cli.Command {
	flags := clientFlags(&cli.IntFlag{
		Name: limitFlag, Value: trace.DefaultLimit, Usage: fmt.Sprintf("how many steps are shown at the most, up to %d; the newest", trace.MaxLimit),
	})
	for _, f := range traceFlags {
		flags = append(flags, &cli.StringFlag{Name: f.flag, Usage: f.usage})
	}
	return &cli.Command{
		Name:      "trace",
		Usage:     "tell what became of messages",
		UsageText: "to-device trace [flags], with at least one of -message-id, -edu-id, -user and -sender",
		Flags:     flags,
		Action: asking(func(ctx context.Context, cmd *cli.Command, c *client, _ []string) error {
			query := url.Values{"limit": {number(cmd.Int(limitFlag))}}
			for _, f := range traceFlags {
				if cmd.IsSet(f.flag) {
					query.Set(f.parameter, cmd.String(f.flag))
				}
			}
			var found admin.Trace
			if err := c.call(ctx, http.MethodGet, []string{"trace"}, query, &found); err != nil {
				return err
			}
			return t.show(cmd, found, func() { t.trace(&found) })
		}, 0),
	}
}

func (t terminal) trace(found *admin.Trace) {
	var rows [][]string
	for i := range found.Records {
		r := &found.Records[i]
		to := strings.TrimSpace(r.UserID + " " + r.DeviceID)
		if r.Destination != "" {
			to = strings.TrimSpace(to + " at " + r.Destination)
		}
		step := strings.ReplaceAll(r.Step, "_", " ")
		if r.Reason != "" {
			step += ": " + strings.ReplaceAll(r.Reason, "_", " ")
		}
		if r.Count > 1 {
			step += fmt.Sprintf(" (%d messages)", r.Count)
		}
		position := none
		if r.Position != 0 {
			position = number(r.Position)
		}
		rows = append(rows, []string{
			moment(r.TS), printable(step), position, printable(r.Sender), printable(to), printable(r.Type), printable(r.MessageID), printable(r.EDUID),
		})
	}
	t.table([]string{"TIME", "STEP", "POSITION", "SENDER", "TO", "TYPE", "MESSAGE ID", "EDU"}, rows)
	switch {
	case found.Coverage.Capacity == 0:
		fmt.Fprintln(t.err, "The trace is switched off: to_device.trace_records is 0.")
	case found.More:
		fmt.Fprintf(t.err, "There are older steps; -%s shows more.\n", limitFlag)
	default:
		fmt.Fprintf(t.err, "Every step since %s is known.\n", moment(found.Coverage.SinceTS))
	}
}
