package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"pgregory.net/rapid"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// TestModel sends random messages through a random history of failures. In the end every message has arrived
// once, in order for each destination, or it is one that its destination refuses, and that is kept.
func TestModel(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		real, runs := open(t), 0
		if err := real.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(rt *rapid.T) {
			// The runs share a database, each with destinations of its own.
			runs++
			m := newModel(rt, real, fmt.Sprintf("run%d.org", runs))
			defer m.stop()
			rt.Repeat(map[string]func(*rapid.T){
				"add":           m.addSome,
				"send":          m.sendSome,
				"send and add":  m.sendWhileAdding,
				"time passes":   m.pass,
				"restart":       m.restartSome,
				"database":      m.breakDatabase,
				"refuses all":   m.refuseAll,
				"refuses first": m.refuseFirst,
				"becomes moody": m.calm,
				"":              m.checkAll,
			})
			m.finish()
		})
	})
}

// The kinds of messages, by the first letter of their IDs.
const (
	plain  = "p" // accepted
	poison = "x" // refused with a 400, for ever
	crash  = "c" // answered with a 500, for ever
	moody  = "m" // refused until the destination is calm
)

type model struct {
	*fixture
	rt      *rapid.T
	names   []string
	remotes map[string]*modelRemote
	touched map[string]bool // since they were checked
	count   int
}

// modelRemote is a destination with a script for its next answers.
type modelRemote struct {
	*remote
	script []string
	calm   bool
	sent   []string // everything for it
}

func newModel(rt *rapid.T, real *testdb.Store, suffix string) *model {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	rt.Cleanup(cancel)
	m := &model{
		fixture: &fixture{failer: rt, ctx: ctx, real: real, store: &store{Outbox: real}, clock: newClock(), host: newHost()},
		rt:      rt, names: []string{"a." + suffix, "b." + suffix}, remotes: make(map[string]*modelRemote), touched: make(map[string]bool),
	}
	for _, name := range m.names {
		r := &modelRemote{remote: newRemote(rt)}
		r.on(r.answer)
		m.remotes[name] = r
	}
	m.claim()
	m.renew()
	m.start()
	rt.Cleanup(m.clear)
	return m
}

// clear leaves nothing to the runs that follow one that failed.
func (m *model) clear() {
	for _, name := range m.names {
		m.must(m.real.Sent(m.ctx, name, m.last))
		for _, refusal := range m.aside(name) {
			m.must(m.real.Accepted(m.ctx, name, refusal.Position))
		}
	}
}

func (r *modelRemote) answer(_ context.Context, t gomatrixserverlib.Transaction) error {
	next := ""
	if len(r.script) > 0 {
		next, r.script = r.script[0], r.script[1:]
	}
	r.keeps = false
	switch next {
	case "lost before":
		return errNetwork
	case "lost after":
		if err := r.judge(t); err != nil {
			return err
		}
		r.keeps = true
		return errNetwork
	case "failed":
		return answer(503)
	case "busy":
		return answer(429)
	case "proxy":
		return answer(403)
	case "all":
		r.script = []string{"all"} // until the script is changed
		return answer(403)
	}
	return r.judge(t)
}

func (r *modelRemote) judge(t gomatrixserverlib.Transaction) error {
	for _, id := range idsOf(t) {
		switch {
		case strings.HasPrefix(id, poison), strings.HasPrefix(id, moody) && !r.calm:
			return answer(400)
		case strings.HasPrefix(id, crash):
			return answer(500)
		}
	}
	return nil
}

func (m *model) draw(rt *rapid.T) (string, *modelRemote) {
	name := rapid.SampledFrom(m.names).Draw(rt, "destination")
	m.touched[name] = true
	return name, m.remotes[name]
}

func (m *model) drawEDUs(rt *rapid.T, name string) (all []storage.EDU) {
	kinds := rapid.SampledFrom(append(slices.Repeat([]string{plain}, 12), poison, crash, moody))
	few, many := rapid.IntRange(1, 5), rapid.IntRange(90, 130)
	for range rapid.OneOf(few, few, few, few, few, many).Draw(rt, "edus") {
		m.count++
		kind := plain
		if m.count%5 == 0 {
			kind = kinds.Draw(rt, "kind")
		}
		e := edu(name, fmt.Sprintf("%s%d", kind, m.count))
		if m.count%17 == 0 {
			e.Origin = "other.org"
		}
		all = append(all, e)
	}
	m.remotes[name].sent = append(m.remotes[name].sent, idsIn(all)...)
	return all
}

func idsIn(all []storage.EDU) (ids []string) {
	for i := range all {
		ids = append(ids, all[i].MessageID)
	}
	return ids
}

func (m *model) addSome(rt *rapid.T) {
	name, _ := m.draw(rt)
	m.add(m.drawEDUs(rt, name)...)
}

func (m *model) sendSome(rt *rapid.T) {
	name, r := m.draw(rt)
	r.script = rapid.SliceOfN(rapid.SampledFrom([]string{"", "", "", "lost before", "lost after", "failed", "busy"}), 0, 6).Draw(rt, "script")
	m.sendTo(rt, name)
	r.script = nil
}

// sendTo is a transaction of the host's. It has none of ours in its line after a success without a fault.
func (m *model) sendTo(rt *rapid.T, name string) {
	var pdus []string
	for i := range rapid.IntRange(0, 2).Draw(rt, "pdus") {
		pdus = append(pdus, fmt.Sprintf(`{"pdu":%d}`, i))
	}
	hosts := rapid.SampledFrom([]int{0, 0, 0, 1, 2, 50, 98, 99, 100}).Draw(rt, "edus of the host")
	t := m.transaction(name, pdus, typings(hosts)...)
	t.EDUs = t.EDUs[rapid.IntRange(0, 1).Draw(rt, "no doorbell"):]
	before := len(m.remotes[name].took())
	err := m.Send(m.ctx, t, m.remotes[name].deliver)
	if err != nil {
		return
	}
	m.hostID++
	for _, took := range m.remotes[name].took()[before:] {
		if len(took.EDUs)-messagesIn(took) == hosts && len(took.PDUs) == len(pdus) {
			return
		}
	}
	if hosts+len(pdus) > 0 {
		rt.Fatal("the host was told that its part has arrived, which is not so")
	}
}

// messagesIn counts the EDUs that are not the host's.
func messagesIn(t gomatrixserverlib.Transaction) (n int) {
	for _, edu := range t.EDUs {
		if edu.Type == "m.direct_to_device" {
			n++
		}
	}
	return n
}

func (m *model) sendWhileAdding(rt *rapid.T) {
	name, _ := m.draw(rt)
	all := m.drawEDUs(rt, name)
	added := false
	m.store.afterWaiting = func(int) {
		if !added {
			added = true
			m.add(all...)
		}
	}
	m.sendTo(rt, name)
	m.store.afterWaiting = nil
	if !added {
		m.add(all...)
	}
}

func (m *model) pass(rt *rapid.T) {
	m.clock.advance(rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Second, time.Minute, time.Hour}).Draw(rt, "time"))
}

func (m *model) restartSome(*rapid.T) { m.restart() }

func (m *model) breakDatabase(rt *rapid.T) {
	name, _ := m.draw(rt)
	for _, method := range []string{"Waiting", "Sent", "Refuse", "Refused", "Accepted"} {
		m.store.fail(method, rapid.SampledFrom([]fault{works, works, lostBefore, lostAnswer}).Draw(rt, method))
	}
	m.sendTo(rt, name)
	m.store.heal()
}

// refuseAll sends to a destination that takes nothing at all, the host's part included.
func (m *model) refuseAll(rt *rapid.T) {
	name, r := m.draw(rt)
	before := len(m.store.refused())
	r.script = []string{"all"}
	m.sendTo(rt, name)
	r.script = nil
	if len(m.store.refused()) > before {
		rt.Fatal("something was put aside for a destination that takes nothing")
	}
}

// refuseFirst sends through something that refuses everything at first.
func (m *model) refuseFirst(rt *rapid.T) {
	name, r := m.draw(rt)
	r.script = slices.Repeat([]string{"proxy"}, rapid.IntRange(1, 12).Draw(rt, "refusals"))
	m.sendTo(rt, name)
	r.script = nil
}

func (m *model) calm(rt *rapid.T) {
	_, r := m.draw(rt)
	r.calm = !r.calm
}

// checkAll looks that nothing is lost and nothing is out of order.
func (m *model) checkAll(rt *rapid.T) {
	for name := range m.touched {
		r := m.remotes[name]
		kept := m.line(name)
		for _, refusal := range m.aside(name) {
			kept = append(kept, refusal.MessageID)
		}
		for _, refusal := range m.store.refused() {
			if refusal.RetryAt.IsZero() {
				kept = append(kept, refusal.MessageID)
			}
		}
		got := r.got()
		for _, id := range r.sent {
			if !slices.Contains(got, id) && !slices.Contains(kept, id) {
				rt.Fatalf("%s did not arrive at %s and is not kept", id, name)
			}
		}
		if want := ofKind(r.sent, plain); !isPrefix(ofKind(got, plain), want) {
			rt.Fatalf("arrived at %s: %v\nsent: %v", name, ofKind(got, plain), want)
		}
		if bad := ofKind(got, poison, crash); len(bad) > 0 {
			rt.Fatalf("accepted what is refused: %v", bad)
		}
	}
	clear(m.touched)
}

func ofKind(ids []string, kinds ...string) (of []string) {
	for _, id := range ids {
		if slices.Contains(kinds, id[:1]) {
			of = append(of, id)
		}
	}
	return of
}

func isPrefix(prefix, all []string) bool {
	return len(prefix) <= len(all) && slices.Equal(prefix, all[:len(prefix)])
}

// finish mends everything and waits for what is left.
func (m *model) finish() {
	for name, r := range m.remotes {
		r.calm, r.script = true, nil
		for i := 0; ; i++ {
			_ = m.Send(m.ctx, m.transaction(name, nil), r.deliver)
			m.hostID++
			// Once more at least: what was done while the database was away is found out later.
			if i > 0 && len(m.line(name))+len(m.aside(name)) == 0 {
				break
			}
			if i > 200 {
				m.rt.Fatalf("waiting for %s for ever: %v, aside: %+v", name, m.line(name), m.aside(name))
			}
			m.clock.advance(outbox.Pauses[len(outbox.Pauses)-1])
		}
		if got, want := ofKind(r.got(), plain), ofKind(r.sent, plain); !slices.Equal(got, want) {
			m.rt.Fatalf("arrived at %s: %v\nsent: %v", name, got, want)
		}
		m.wantSetAside(r)
	}
	// A look for what is refused that the database failed is made again.
	m.clock.advance(outbox.Pauses[0])
	for name, r := range m.remotes {
		_ = m.Send(m.ctx, m.transaction(name, nil), r.deliver)
		m.hostID++
	}
	for _, name := range m.names {
		m.touched[name] = true
	}
	m.checkAll(m.rt)
	m.wantForgotten()
}

func (m *model) wantSetAside(r *modelRemote) {
	var aside []string
	attempts := make(map[string]int)
	for _, refusal := range m.store.refused() {
		id := refusal.MessageID
		if slices.Contains(r.sent, id) {
			if refusal.Attempts > attempts[id]+1 {
				m.rt.Fatalf("attempt %d of %s is followed by %d", attempts[id], id, refusal.Attempts)
			}
			attempts[id] = refusal.Attempts
			if refusal.RetryAt.IsZero() {
				aside = append(aside, id)
			}
		}
	}
	slices.Sort(aside)
	want := ofKind(r.sent, poison, crash)
	for _, id := range ofKind(r.sent, moody) {
		if !slices.Contains(r.got(), id) {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	if !slices.Equal(slices.Compact(aside), want) {
		m.rt.Fatalf("set aside: %v, want %v", aside, want)
	}
}
