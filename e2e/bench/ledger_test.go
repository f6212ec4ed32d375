package main

import (
	"testing"
	"time"
)

// arrive lets the messages of one sender arrive at the first receiver, by their numbers.
func arrive(l *ledger, seqs ...int) {
	for _, seq := range seqs {
		l.got(0, []string{mark{l.load, 0, seq}.String()}, time.Second)
	}
}

func TestLedgerFindsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		arrive func(l *ledger)
		want   wrong
	}{
		"all arrived":                {func(l *ledger) { arrive(l, 0, 1, 2, 4) }, wrong{}},
		"the refused one came":       {func(l *ledger) { arrive(l, 0, 1, 2, 3, 4) }, wrong{}},
		"nothing arrived":            {func(*ledger) {}, wrong{Lost: 4}},
		"one is lost":                {func(l *ledger) { arrive(l, 0, 2, 4) }, wrong{Lost: 1}},
		"the last is lost":           {func(l *ledger) { arrive(l, 0, 1, 2) }, wrong{Lost: 1}},
		"one came twice":             {func(l *ledger) { arrive(l, 0, 1, 1, 2, 4) }, wrong{Doubled: 1}},
		"one came again later":       {func(l *ledger) { arrive(l, 0, 1, 2, 4, 0, 0) }, wrong{Doubled: 2}},
		"two changed places":         {func(l *ledger) { arrive(l, 0, 2, 1, 4) }, wrong{Reordered: 1}},
		"one came before two":        {func(l *ledger) { arrive(l, 2, 0, 1, 4) }, wrong{Reordered: 2}},
		"lost, doubled and late":     {func(l *ledger) { arrive(l, 2, 2, 0, 4) }, wrong{Lost: 1, Doubled: 1, Reordered: 1}},
		"one that was never sent":    {func(l *ledger) { arrive(l, 0, 1, 2, 4, 5, -1) }, wrong{Stray: 2}},
		"one of an earlier load":     {func(l *ledger) { arrive(l, 0, 1, 2, 4); l.got(0, []string{mark{"other", 0, 3}.String()}, 0) }, wrong{Stray: 1}},
		"one of nobody":              {func(l *ledger) { arrive(l, 0, 1, 2, 4); l.got(0, []string{mark{l.load, 9, 0}.String()}, 0) }, wrong{Stray: 1}},
		"one without a mark":         {func(l *ledger) { arrive(l, 0, 1, 2, 4); l.got(0, []string{""}, 0) }, wrong{Stray: 1}},
		"one at the wrong receiver":  {func(l *ledger) { arrive(l, 0, 1, 2, 4); l.got(1, []string{mark{l.load, 0, 1}.String()}, 0) }, wrong{Stray: 1}},
		"in order for each receiver": {func(l *ledger) { l.got(1, []string{mark{l.load, 1, 1}.String()}, 0); arrive(l, 0, 1, 2, 4) }, wrong{}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(2, 2)
			for seq := range 5 {
				l.sent(0, sent{to: []int{0}, ok: seq != 3})
			}
			if name == "in order for each receiver" { // another sender's own numbers
				l.sent(1, sent{to: []int{0}})
				l.sent(1, sent{to: []int{1}, ok: true})
			}
			c.arrive(l)
			if _, w := l.check(); w != c.want {
				t.Errorf("want %+v, got %+v", c.want, w)
			}
		})
	}
}

func TestLedgerCountsEveryCopy(t *testing.T) {
	l := newLedger(1, 3)
	l.sent(0, sent{to: []int{0, 2}, ok: true})
	m := mark{l.load, 0, 0}.String()
	l.got(0, []string{m}, 0)
	if _, w := l.check(); w != (wrong{Lost: 1}) {
		t.Errorf("want the copy of the third receiver lost, got %+v", w)
	}
	if l.onTheWay() != 1 {
		t.Errorf("want 1 on the way, got %d", l.onTheWay())
	}
	l.got(2, []string{m}, 0)
	deliveries, w := l.check()
	if w.total() != 0 || len(deliveries) != 2 || l.onTheWay() != 0 {
		t.Errorf("want both delivered, got %d, %+v", len(deliveries), w)
	}
}

func TestMarkInRequest(t *testing.T) {
	for text, good := range map[string]bool{"a.1.2": true, "": false, "a.1": false, "a.1.x": false, "a..2": false} {
		if m, ok := parseMark(text); ok != good || ok && m.String() != text {
			t.Errorf("%q: %v %v", text, m, ok)
		}
	}
}
