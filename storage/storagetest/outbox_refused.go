package storagetest

import (
	"strings"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func outboxRefusedTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"out of the line":     refuseLeavesLine,
		"in the place of":     refuseAgain,
		"due":                 refusedDue,
		"accepted":            refusedAccepted,
		"whatever they reply": refuseAnswers,
	}
}

var never time.Time

// refuse refuses the EDU for the first time.
func (f *fixture) refuse(e storage.EDU, retryAt time.Time) storage.Refusal {
	f.Helper()
	r := storage.Refusal{EDU: e, Attempts: 1, RetryAt: retryAt, Answer: "400 M_BAD_JSON"}
	f.must(f.store.Refuse(f.ctx, r))
	return r
}

func (f *fixture) wantRefusals(destination string, want []storage.Refusal) {
	f.Helper()
	f.wantDue(destination, moment(1<<50), 1<<20, want)
}

func (f *fixture) wantDue(destination string, by time.Time, limit int, want []storage.Refusal) {
	f.Helper()
	got, err := f.store.Refused(f.ctx, destination, by, limit)
	f.must(err)
	if len(got) != len(want) {
		f.Fatalf("got %d refusals, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if !sameEDU(g.EDU, w.EDU) || g.Attempts != w.Attempts || !g.RetryAt.Equal(w.RetryAt) || g.Answer != w.Answer {
			f.Fatalf("refusal %d is %+v, want %+v", i, g, w)
		}
	}
}

func refuseLeavesLine(f *fixture) {
	line, other := f.queue(remote, 3), f.queue(elsewhere, 1)
	refusal := storage.Refusal{EDU: line[1], Attempts: 1, RetryAt: moment(1), Answer: `{"errcode":"M_BAD_JSON"}`}
	refusal.Origin, refusal.MessageID = "other.example.org", "other"
	f.must(f.store.Refuse(f.ctx, refusal))
	f.wantLine(remote, []storage.EDU{line[0], line[2]})
	f.wantRefusals(remote, []storage.Refusal{refusal})
	f.wantLine(elsewhere, other)
	f.wantRefusals(elsewhere, nil)

	f.refuse(line[0], never)
	f.wantLine(remote, line[2:])
	f.wantRefusals(remote, []storage.Refusal{refusal})
	f.must(f.store.Sent(f.ctx, remote, everLater))
	f.wantRefusals(remote, []storage.Refusal{refusal})
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func refuseAgain(f *fixture) {
	line := f.queue(remote, 2)
	first, second := f.refuse(line[0], moment(1)), f.refuse(line[1], moment(2))
	first.Attempts, first.RetryAt, first.Answer = 1000, moment(3), "500"
	first.Origin, first.MessageID, first.Content = "other.example.org", "other", []byte(`{"changed":1}`)
	for range 2 {
		f.must(f.store.Refuse(f.ctx, first))
		f.wantRefusals(remote, []storage.Refusal{second, first})
	}
	second.RetryAt = never
	f.must(f.store.Refuse(f.ctx, second))
	f.wantRefusals(remote, []storage.Refusal{first})
	second.RetryAt = moment(4) // no longer set aside
	f.must(f.store.Refuse(f.ctx, second))
	f.wantRefusals(remote, []storage.Refusal{first, second})
	f.wantLine(remote, nil)
}

func refusedDue(f *fixture) {
	line, other := f.queue(remote, 6), f.queue(elsewhere, 1)
	var due []storage.Refusal
	for i, at := range []int64{30, 10, 20, 20, -1e12} {
		due = append(due, f.refuse(line[i], moment(at)))
	}
	due = []storage.Refusal{due[4], due[1], due[2], due[3], due[0]}
	f.refuse(line[5], never)
	f.refuse(other[0], moment(0))
	for _, c := range []struct{ by, limit, want int }{
		{9, 10, 1}, {10, 10, 2}, {19, 10, 2}, {20, 10, 4}, {29, 10, 4}, {30, 10, 5}, {1 << 50, 10, 5},
		{30, 5, 5}, {30, 3, 3}, {30, 1, 1}, {30, 0, 0}, {30, -1, 0}, {-1e12 - 1, 10, 0},
	} {
		f.wantDue(remote, moment(int64(c.by)), c.limit, due[:c.want])
		f.wantDue(remote, moment(int64(c.by)).In(time.FixedZone("", 3600)), c.limit, due[:c.want])
	}
}

func refusedAccepted(f *fixture) {
	line, other := f.queue(remote, 4), f.queue(elsewhere, 1)
	refused := []storage.Refusal{f.refuse(line[0], moment(1)), f.refuse(line[1], moment(2))}
	f.refuse(line[2], never)
	kept := f.refuse(other[0], moment(1))
	for range 2 {
		f.must(f.store.Accepted(f.ctx, remote, line[0].Position))
		f.wantRefusals(remote, refused[1:])
	}
	f.must(f.store.Accepted(f.ctx, remote, line[3].Position)) // in the line still
	f.wantLine(remote, line[3:])
	f.must(f.store.Accepted(f.ctx, elsewhere, line[1].Position))
	f.wantRefusals(remote, refused[1:])
	f.wantRefusals(elsewhere, []storage.Refusal{kept})
	f.must(f.store.Accepted(f.ctx, remote, line[1].Position))
	f.wantRefusals(remote, nil)
}

// Another server may answer with anything, as long as it likes.
func refuseAnswers(f *fixture) {
	e := f.queue(remote, 1)[0]
	for answer, want := range map[string]string{
		"":                               "",
		"o'hara {\"},NULL\\ $1 ?1 %s\n马": "o'hara {\"},NULL\\ $1 ?1 %s\n马",
		"nul\x00nul\x00":                 "nul\uFFFDnul\uFFFD",
		"\xff\xfeab\xed\xa0\x80":         "\uFFFDab\uFFFD",
		strings.Repeat("x", 1024):        strings.Repeat("x", 1024),
		strings.Repeat("x", 1025):        strings.Repeat("x", 1024),
		strings.Repeat("x", 1<<22):       strings.Repeat("x", 1024),
		"x" + strings.Repeat("é", 1<<10): "x" + strings.Repeat("é", 511) + "\uFFFD",
	} {
		refusal := f.refuse(e, moment(1))
		refusal.Answer = answer
		f.must(f.store.Refuse(f.ctx, refusal))
		refusal.Answer = want
		f.wantRefusals(remote, []storage.Refusal{refusal})
	}
}
