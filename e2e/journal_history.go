package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// rememberedFor is how much of the past of each receiver is kept; shownOf is how much of it stands beside a fault.
	rememberedFor = 4000
	shownOf       = 25
	shownFaults   = 5
)

// happening is one thing that happened to a receiver.
type happening struct {
	at   time.Time
	what string
}

func (m journalMessage) String() string {
	return strings.TrimRight(fmt.Sprintf("number %d of %s %s", m.Seq, m.Sender, m.Device), " ")
}

// Note keeps something that happened to a receiver, to be shown beside a fault.
func (j *Journal) Note(receiver, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.note(receiver, format, args...)
}

func (j *Journal) note(receiver, format string, args ...any) {
	past := j.happened[receiver]
	if len(past) >= 2*rememberedFor {
		past = slices.Clone(past[rememberedFor:])
	}
	j.happened[receiver] = append(past, happening{time.Now(), fmt.Sprintf(format, args...)})
}

// CameAgain records a message that came after it was acknowledged.
func (j *Journal) CameAgain(receiver string, m journalMessage, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.found.Again++
	j.fault(receiver, fmt.Sprintf("%s came again: %s", m, why))
}

// Contradicted records a response that must have been another one.
func (j *Journal) Contradicted(receiver, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.found.Changed++
	j.fault(receiver, why)
}

// Faults returns the first broken promises in words, each with what happened to its receiver.
func (j *Journal) Faults() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.faults, "\n")
}

// fault is told of a fault as it happens.
func (j *Journal) fault(receiver, what string) {
	past := j.happened[receiver]
	j.addFault(receiver, what, past[max(0, len(past)-shownOf):])
}

// faultAbout is told of a fault of the past: what is shown begins with what became of the message.
func (j *Journal) faultAbout(receiver string, m journalMessage, what string) {
	past := j.happened[receiver]
	mark := m.String() + " "
	i := slices.IndexFunc(past, func(h happening) bool { return strings.HasPrefix(h.what, mark) })
	if i < 0 {
		i = max(0, len(past)-shownOf)
	}
	j.addFault(receiver, what, past[max(0, i-5):min(len(past), i+shownOf)])
}

func (j *Journal) addFault(receiver, what string, past []happening) {
	if len(j.faults) >= shownFaults {
		return
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %s", receiver, what)
	for _, h := range past {
		fmt.Fprintf(&out, "\n    %s %s", h.at.Format("15:04:05.000"), h.what)
	}
	j.faults = append(j.faults, out.String())
}
