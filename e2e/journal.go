package e2e

import (
	"encoding/json"
	"fmt"
	"sync"
)

// Journal records what was promised and what arrived, and compares them: each message that was
// answered with 200 must arrive once at each device it was sent to, and the messages of one
// sender in the order they were sent.
type Journal struct {
	mu       sync.Mutex
	accepted map[journalKey]bool
	arrived  map[string][]journalMessage // by receiver, in the order of arrival
	repeats  int
	copies   int
}

// journalMessage is what a message of the journal says about itself.
type journalMessage struct {
	Sender string `json:"sender"`
	Seq    int    `json:"seq"`
}

type journalKey struct {
	journalMessage
	receiver string
}

// NewJournal returns an empty journal.
func NewJournal() *Journal {
	return &Journal{accepted: map[journalKey]bool{}, arrived: map[string][]journalMessage{}}
}

// Accepted records that a message to the receivers was answered with 200, after the number of
// attempts given.
func (j *Journal) Accepted(m journalMessage, receivers []string, attempts int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range receivers {
		j.accepted[journalKey{m, r}] = true
	}
	if attempts > 1 {
		j.repeats++
	}
}

// Arrived records the messages of one /sync response, in their order.
func (j *Journal) Arrived(receiver string, events []Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range events {
		var m journalMessage
		if err := json.Unmarshal(e.Content, &m); err != nil || m.Sender != e.Sender {
			return fmt.Errorf("a message arrived that nobody sent: %s", describe(events))
		}
		j.arrived[receiver] = append(j.arrived[receiver], m)
		j.copies++
	}
	return nil
}

// Counts returns how many copies were promised and how many arrived so far.
func (j *Journal) Counts() (accepted, arrived int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.accepted), j.copies
}

// Outstanding returns how many copies that were promised to the receiver have not arrived.
func (j *Journal) Outstanding(receiver string) int {
	return j.check(receiver).Lost
}

// Figures are what a journal found, counted in copies: one message to three devices is three.
type Figures struct {
	Accepted, Arrived                    int
	Retried                              int // messages answered with 200 after more than one attempt
	Lost, Doubled, Reordered, Unpromised int
}

func (f Figures) String() string {
	return fmt.Sprintf("%d copies answered 200 (%d requests repeated), %d arrived: %d lost, %d doubled, %d out of order, %d never answered 200",
		f.Accepted, f.Retried, f.Arrived, f.Lost, f.Doubled, f.Reordered, f.Unpromised)
}

// Good tells whether every promise was kept.
func (f Figures) Good() bool { return f.Lost+f.Doubled+f.Reordered+f.Unpromised == 0 }

// Check compares what was promised with what arrived. Call it when senders and receivers are
// done: a message that was not yet answered with 200 counts as unpromised.
func (j *Journal) Check() Figures { return j.check("") }

func (j *Journal) check(only string) Figures {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := Figures{Accepted: len(j.accepted), Arrived: j.copies, Retried: j.repeats}
	seen := map[journalKey]int{}
	for receiver, messages := range j.arrived {
		if only != "" && receiver != only {
			continue
		}
		last := map[string]int{}
		for _, m := range messages {
			key := journalKey{m, receiver}
			seen[key]++
			switch {
			case seen[key] > 1:
				f.Doubled++
				continue
			case !j.accepted[key]:
				f.Unpromised++
			}
			if before, ok := last[m.Sender]; ok && m.Seq < before {
				f.Reordered++
			}
			last[m.Sender] = max(last[m.Sender], m.Seq)
		}
	}
	for key := range j.accepted {
		if seen[key] == 0 && (only == "" || key.receiver == only) {
			f.Lost++
		}
	}
	return f
}
