package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
)

// Journal records what was promised and what arrived, and compares them: each message that was
// answered with 200 must arrive once at each device it was sent to and at no other, and the messages
// of one sending device in the order they were sent. It keeps what happened to each receiver, and shows the last of
// that beside a broken promise.
type Journal struct {
	mu       sync.Mutex
	sent     map[journalMessage][]string // to whom, where that was said
	accepted map[journalKey]bool
	givenUp  map[journalKey]bool
	seen     map[journalKey]int
	last     map[journalLine]int   // the last number that arrived
	missing  map[string]int        // by receiver
	due      map[journalLine][]int // what was answered 200 and has not arrived, in order
	found    Figures               // but for what only the end shows
	happened map[string][]happening
	faults   []string
	back     takenBack
	lives    lives
}

// journalMessage is what a message of the journal says about itself.
type journalMessage struct {
	Sender string `json:"sender"`
	Device string `json:"device,omitempty"` // where several devices of one user send
	Seq    int    `json:"seq"`
}

type journalKey struct {
	journalMessage
	receiver string
}

// journalLine is what has an order: what one device sends to one other.
type journalLine struct{ sender, device, receiver string }

// NewJournal returns an empty journal.
func NewJournal() *Journal {
	return &Journal{
		sent: map[journalMessage][]string{}, accepted: map[journalKey]bool{}, givenUp: map[journalKey]bool{},
		seen: map[journalKey]int{}, last: map[journalLine]int{}, missing: map[string]int{},
		due: map[journalLine][]int{}, happened: map[string][]happening{}, back: newTakenBack(), lives: newLives(),
	}
}

// Sent records for whom a message is, before it is sent. Of a message that was not recorded so it is not known
// whether it went to somebody else.
func (j *Journal) Sent(m journalMessage, receivers []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sent[m] = receivers
	j.back.sends(m)
	j.lives.sends(m, receivers)
}

// Accepted records that a message to the receivers was answered with 200, after the number of
// attempts given.
func (j *Journal) Accepted(m journalMessage, receivers []string, attempts int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.back.accepts(m)
	for _, r := range receivers {
		key := journalKey{m, r}
		if j.accepted[key] {
			continue
		}
		j.accepted[key] = true
		j.note(r, "%s answered 200 after %d attempts", m, attempts)
		if promised := j.lives.accepts(key); promised && j.seen[key] == 0 {
			line := journalLine{m.Sender, m.Device, r}
			j.missing[r]++
			j.due[line] = append(j.due[line], m.Seq)
		}
	}
	delete(j.lives.sent, m)
	if attempts > 1 {
		j.found.Retried++
	}
}

// GivenUp records that nobody will repeat a message that had no answer: it may arrive, once, or not, and after
// what was sent later.
func (j *Journal) GivenUp(m journalMessage, receivers []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.found.GivenUp++
	delete(j.lives.sent, m)
	for _, r := range receivers {
		j.givenUp[journalKey{m, r}] = true
	}
}

// Arrived records the messages of one /sync response, in their order.
func (j *Journal) Arrived(receiver string, events []Event) error {
	return j.ArrivedIn(0, receiver, events)
}

// ArrivedIn is Arrived for a receiver that is signed out and in. The life is that in which it made the request.
func (j *Journal) ArrivedIn(life int, receiver string, events []Event) error {
	messages, err := journalMessages(events)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, m := range messages {
		j.arrived(life, receiver, m)
	}
	return nil
}

func (j *Journal) arrived(life int, receiver string, m journalMessage) {
	key, line := journalKey{m, receiver}, journalLine{m.Sender, m.Device, receiver}
	j.note(receiver, "%s arrived", m)
	j.found.Arrived++
	j.seen[key]++
	if j.accepted[key] && j.lives.before(key, life) && j.back.again[m] == 0 {
		j.found.AfterDeletion++
		j.fault(receiver, fmt.Sprintf("%s was delivered after deletion: it was answered 200 before the device was deleted that had this ID", m))
		return
	}
	if j.lives.after(key, life) {
		j.found.Leaked++
		j.fault(receiver, fmt.Sprintf("%s arrived by a token of the device that was deleted before", m))
		return
	}
	if j.seen[key] > 1+j.back.again[m] {
		j.found.Doubled++
		j.fault(receiver, fmt.Sprintf("%s arrived %d times", m, j.seen[key]))
	}
	if j.seen[key] > 1 {
		return
	}
	if to, known := j.sent[m]; known && !slices.Contains(to, receiver) {
		j.found.Leaked++
		j.fault(receiver, fmt.Sprintf("%s arrived, which was sent to %v", m, to))
		return
	}
	if j.accepted[key] && j.lives.promised(key) && !j.back.lost[key] {
		j.missing[receiver]--
	}
	if j.givenUp[key] || j.lives.stages[receiver] != 2*life {
		return
	}
	// Whatever the sender had the answer to before it sent this message is here, or comes too late: Check says which.
	due := j.due[line]
	for len(due) > 0 && due[0] <= m.Seq {
		if due[0] < m.Seq {
			overtaken := journalMessage{m.Sender, m.Device, due[0]}
			j.faultAbout(receiver, overtaken, fmt.Sprintf("%s was overtaken by number %d", overtaken, m.Seq))
		}
		due = due[1:]
	}
	j.due[line] = due
	if before, ok := j.last[line]; ok && m.Seq < before {
		j.found.Reordered++
		j.fault(receiver, fmt.Sprintf("%s arrived after number %d", m, before))
	}
	j.last[line] = max(j.last[line], m.Seq)
}

// journalMessages reads the messages of a response. An error says that one of them was never sent.
func journalMessages(events []Event) ([]journalMessage, error) {
	messages := make([]journalMessage, len(events))
	for i, e := range events {
		if err := json.Unmarshal(e.Content, &messages[i]); err != nil || messages[i].Sender != e.Sender {
			return nil, fmt.Errorf("a message arrived that nobody sent: %s", describe(events))
		}
	}
	return messages, nil
}

// Counts returns how many copies were promised and how many arrived so far.
func (j *Journal) Counts() (accepted, arrived int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.accepted), j.found.Arrived
}

// Outstanding returns how many copies that were promised to the receiver have not arrived.
func (j *Journal) Outstanding(receiver string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.missing[receiver]
}

// Figures are what a journal found, counted in copies: one message to three devices is three.
type Figures struct {
	Accepted, Arrived                    int
	Retried                              int // messages answered with 200 after more than one attempt
	GivenUp                              int // messages without an answer that nobody repeated
	Lost, Doubled, Reordered, Unpromised int
	Leaked                               int // arrived at a device they were not sent to
	Again                                int // came again after they were acknowledged
	Changed                              int // responses to a token that another one had contradicted
	AfterDeletion                        int // arrived although the device they were answered 200 for was deleted
	Deletions                            int // of devices
	Deleted                              int // did not arrive and need not, since the device was deleted
	TakenBack                            int // younger than a backup that was restored, and gone
}

func (f Figures) String() string {
	return fmt.Sprintf("%d copies answered 200 (%d requests repeated, %d given up), %d arrived: %d lost, %d doubled, %d out of order, "+
		"%d never answered 200, %d leaked, %d again after their acknowledgement, %d responses that contradict another, "+
		"%d delivered after deletion (%d deletions of devices; %d copies ended with theirs, %d with a restored backup)",
		f.Accepted, f.Retried, f.GivenUp, f.Arrived, f.Lost, f.Doubled, f.Reordered, f.Unpromised, f.Leaked, f.Again, f.Changed,
		f.AfterDeletion, f.Deletions, f.Deleted, f.TakenBack)
}

// Good tells whether every promise was kept.
func (f Figures) Good() bool {
	return f.Lost+f.Doubled+f.Reordered+f.Unpromised+f.Leaked+f.Again+f.Changed+f.AfterDeletion == 0
}

// Check compares what was promised with what arrived. Call it when senders and receivers are
// done: a message that was not yet answered with 200 counts as unpromised.
func (j *Journal) Check() Figures {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := j.found
	f.Accepted = len(j.accepted)
	for key := range j.accepted {
		switch {
		case j.seen[key] > 0:
		case j.back.lost[key]:
			f.TakenBack++
		case !j.lives.promised(key):
			f.Deleted++
		default:
			f.Lost++
			j.faultAbout(key.receiver, key.journalMessage, fmt.Sprintf("%s did not arrive", key.journalMessage))
		}
	}
	for key := range j.seen {
		if !j.accepted[key] && !j.givenUp[key] {
			f.Unpromised++
		}
	}
	return f
}
