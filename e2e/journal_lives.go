package e2e

import (
	"maps"
	"strings"
)

// lives is what a journal knows of receivers that are signed out and in again under the same ID. What was answered 200 before a
// deletion began must not reach the device that comes after it; what was under way then may reach either, or none.
type lives struct {
	// stages are 2n in the n-th life of a receiver, and 2n+1 between the beginning of its deletion and the next life. A receiver
	// that is not named is in its life 0.
	stages map[string]int
	// sent are the stages of the receivers of a message as it was sent, where one was not 0.
	sent map[journalMessage]map[string]int
	// accepted are those of a copy before it was sent and when it was answered 200, where one was not 0.
	accepted map[journalKey]lifespan
}

// lifespan is from one stage of a receiver to another one.
type lifespan struct{ from, to int }

func newLives() lives {
	return lives{stages: map[string]int{}, sent: map[journalMessage]map[string]int{}, accepted: map[journalKey]lifespan{}}
}

func (l lives) sends(m journalMessage, receivers []string) {
	stages := map[string]int{}
	for _, r := range receivers {
		if stage := l.stages[r]; stage > 0 {
			stages[r] = stage
		}
	}
	if len(stages) > 0 {
		l.sent[m] = stages
	}
}

// accepts is told of a copy that was answered 200. It returns whether its receiver must get it, as far as can be said by now.
func (l lives) accepts(key journalKey) (promised bool) {
	s := lifespan{l.sent[key.journalMessage][key.receiver], l.stages[key.receiver]}
	if s != (lifespan{}) {
		l.accepted[key] = s
	}
	return l.promised(key)
}

// promised tells whether a copy that was answered 200 was under way within one life of its receiver alone, which goes on.
func (l lives) promised(key journalKey) bool {
	s := l.accepted[key]
	return s.from == s.to && s.to == l.stages[key.receiver] && s.to%2 == 0
}

// before tells whether a copy was answered 200 before the deletion began that came before a life of its receiver. Between two servers
// that says nothing: the copy may have been on its way.
func (l lives) before(key journalKey, life int) bool {
	sender, receiver := serverOf(key.Sender), serverOf(key.receiver)
	return sender == receiver && 2*life > l.accepted[key].to+1
}

// after tells whether the sending of a copy began when its receiver was signed in again after a life.
func (l lives) after(key journalKey, life int) bool {
	from := l.accepted[key].from
	if stages, sent := l.sent[key.journalMessage]; sent {
		from = stages[key.receiver]
	}
	return from > 2*life+1
}

// serverOf returns the server of a user, or of a device by its name in the journal.
func serverOf(name string) string {
	user, _, _ := strings.Cut(name, "|")
	_, server, _ := strings.Cut(user, ":")
	return server
}

// Deleting records that the deletion of a receiver is about to begin: nothing is promised to it any more.
func (j *Journal) Deleting(receiver string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lives.stages[receiver]++
	j.found.Deletions++
	j.note(receiver, "its deletion begins")
	j.missing[receiver] = 0
	// What still arrives may come beside what arrives at the next one.
	maps.DeleteFunc(j.due, func(line journalLine, _ []int) bool { return line.receiver == receiver })
	maps.DeleteFunc(j.last, func(line journalLine, _ int) bool { return line.receiver == receiver })
}

// SignedIn records that a receiver that was deleted is there again, and returns which life it is in.
func (j *Journal) SignedIn(receiver string) (life int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lives.stages[receiver]++
	j.note(receiver, "it is signed in again")
	return j.lives.stages[receiver] / 2
}

// Alive tells whether the deletion that ends a life of a receiver has not begun.
func (j *Journal) Alive(receiver string, life int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lives.stages[receiver] == 2*life
}
