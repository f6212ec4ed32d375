package e2e

import (
	"fmt"
	"slices"
)

// deviceView is what a device knows of its queue, and what follows from that for each response: the same token
// gives the same messages again, and behind them perhaps new ones; what a later token has acknowledged
// does not come again.
type deviceView struct {
	name    string
	life    int
	journal *Journal

	since    string // to go on from
	previous string // the token before
	// latest are the messages that came with since: a request with since acknowledges them.
	latest []journalMessage
	used   useOfToken // of since
	run    int64      // of the server, in which since was used
	// dropped are the messages of the last response that was dropped, to a request with since.
	dropped []journalMessage
	gone    map[journalMessage]int64 // acknowledged, and in which run of the server
}

// syncLimit is the most messages of one response, by default.
const syncLimit = 100

type useOfToken int

const (
	unused  useOfToken = iota
	tried              // without an answer
	covered            // the server has answered
)

func newDeviceView(j *Journal, s *session) *deviceView {
	return &deviceView{name: deviceName(s.Client), life: s.life, journal: j, gone: map[journalMessage]int64{}}
}

// asks is told before a request with a token is sent.
func (v *deviceView) asks(since string) {
	if since == v.since && v.used == unused {
		v.used = tried
	}
}

// answered is told of the answer to it. The runs of the server are those before the request and after the answer. The device
// goes on from the answer if it keeps it, which it can only where the request was made with v.since.
func (v *deviceView) answered(since string, res *SyncResponse, before, after int64, keep bool) error {
	messages, err := journalMessages(res.Events())
	if err != nil {
		return err
	}
	v.journal.Note(v.name, "/sync with since %q: %d messages, next_batch %q, kept: %v", since, len(messages), res.NextBatch, keep)
	if since != v.since {
		v.checkOlder(messages, after)
		return nil
	}
	v.wantPrefix(since, v.dropped, messages)
	if v.used != covered {
		v.used, v.run = covered, before
		for _, m := range v.latest {
			v.gone[m] = before
		}
	}
	v.wantNoneGone(messages, after)
	if !keep {
		v.dropped = messages
		return nil
	}
	if err = v.wantForward(since, res.NextBatch); err != nil {
		return err
	}
	v.previous, v.since, v.used, v.latest, v.dropped = since, res.NextBatch, unused, messages, nil
	return v.journal.ArrivedIn(v.life, v.name, res.Events())
}

// wantForward wants positions never to go back.
func (v *deviceView) wantForward(since, next string) error {
	to, err := parsePosition(next)
	if err != nil || since == "" {
		return err
	}
	from, err := parsePosition(since)
	if err == nil && to < from {
		v.journal.Contradicted(v.name, fmt.Sprintf("/sync with since %q goes back to %q", since, next))
	}
	return err
}

// checkOlder looks at the response to a token that the device has gone on from, or to none: what came with the token that the device
// goes on from comes again, unless that was used.
func (v *deviceView) checkOlder(messages []journalMessage, run int64) {
	if v.used == unused {
		v.wantPrefix(v.previous, v.latest, messages)
	}
	v.wantNoneGone(messages, run)
}

// wantPrefix passes over what is acknowledged: it may stand in front after the server has ended, and take up
// the room of a response. It passes over what a restored backup took back, too. Of a device whose deletion has begun nothing need
// come again.
func (v *deviceView) wantPrefix(since string, want, got []journalMessage) {
	if !v.journal.Alive(v.name, v.life) {
		return
	}
	full := len(got) == syncLimit
	passed := func(m journalMessage) bool { _, gone := v.gone[m]; return gone || v.journal.TakenBack(m) }
	want, got = slices.DeleteFunc(slices.Clone(want), passed), slices.DeleteFunc(slices.Clone(got), passed)
	if full {
		want = want[:min(len(want), len(got))]
	}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		v.journal.Contradicted(v.name, fmt.Sprintf("/sync with since %q brought %v before, and now %v", since, want, got))
	}
}

// wantNoneGone allows for acknowledgements that were in the memory of a server that has ended, and for what a client sent anew after
// a backup had taken it back.
func (v *deviceView) wantNoneGone(messages []journalMessage, run int64) {
	for _, m := range messages {
		if in, gone := v.gone[m]; gone && in == run && !v.journal.SentAnew(m) {
			v.journal.CameAgain(v.name, m, "the same run of the server has answered the token that covers it")
		}
	}
}
