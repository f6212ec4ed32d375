package e2e

import (
	"slices"
	"time"
)

// takenBack is what databases that were replaced by backups of themselves no longer have, or may not have.
type takenBack struct {
	accepted map[journalMessage]time.Time // when the first 200 was noted
	latest   map[journalLine]journalMessage
	open     map[journalMessage]bool
	lost     map[journalKey]bool
	again    map[journalMessage]int
}

func newTakenBack() takenBack {
	return takenBack{
		accepted: map[journalMessage]time.Time{}, latest: map[journalLine]journalMessage{}, open: map[journalMessage]bool{},
		lost: map[journalKey]bool{}, again: map[journalMessage]int{},
	}
}

// sends is told of each message before it is sent. A device sends one after the other: by its next message it is done with the one before.
func (b *takenBack) sends(m journalMessage) {
	b.latest[journalLine{sender: m.Sender, device: m.Device}] = m
}

func (b *takenBack) accepts(m journalMessage) {
	if _, known := b.accepted[m]; !known {
		b.accepted[m] = time.Now()
	}
}

// Restored records that the database was replaced by a backup of itself. The backup began at from, and the server, which did not run during
// the replacement, starts no earlier than to: this is to be called in between.
//
// What was answered 200 from then to then may be lost, in part or whole. What clients were still sending then, or repeating, may be stored a second
// time, since the record of the first is lost. Nothing else changes: what was answered before from, and acknowledged since, must not come again.
func (j *Journal) Restored(from, to time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for m := range j.sent {
		at, accepted := j.back.accepted[m]
		if accepted && at.Before(from) {
			continue
		}
		j.back.open[m] = true
		if accepted && !at.After(to) {
			j.mayBeLost(m)
		}
	}
	for _, m := range j.back.latest {
		if j.back.open[m] {
			j.back.again[m]++
		}
	}
}

func (j *Journal) mayBeLost(m journalMessage) {
	for _, r := range j.sent[m] {
		key, line := journalKey{m, r}, journalLine{m.Sender, m.Device, r}
		if !j.accepted[key] || !j.lives.promised(key) || j.seen[key] > 0 || j.back.lost[key] {
			continue
		}
		j.back.lost[key] = true
		j.note(r, "%s may be lost: it is younger than the backup", m)
		j.missing[r]--
		j.due[line] = slices.DeleteFunc(j.due[line], func(seq int) bool { return seq == m.Seq })
	}
}

// TakenBack tells whether a message was on its way, or had just arrived, when a backup replaced what came after it: it may be gone from a queue
// that it stood in, or stand at another place.
func (j *Journal) TakenBack(m journalMessage) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.back.open[m]
}

// SentAnew tells whether the sender of a message was at work on it when a backup took it back, or may have been: it may be stored twice.
func (j *Journal) SentAnew(m journalMessage) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.back.again[m] > 0
}
