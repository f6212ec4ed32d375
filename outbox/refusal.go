package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

// pauses are how long an EDU that was refused for the first, second, ... time stands aside. After the last
// it is set aside.
var pauses = []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}

const (
	// statusFailed is the answer of a destination that met a fault of its own, perhaps because of what it
	// was sent: after failuresAlike of them in a row the EDU is looked for as after a refusal.
	statusFailed  = http.StatusInternalServerError
	failuresAlike = 5
	// maxAnswerBytes is how much of an answer is kept.
	maxAnswerBytes = 1024
	// retriedInARow bounds the refused EDUs that one call of Send sends again.
	retriedInARow = 10
	// storeTimeout bounds the record of what became of an EDU, which is made even if the host gave up.
	storeTimeout = 30 * time.Second
)

// statusOf returns the HTTP status of an answer, or zero if there was none.
func statusOf(err error) int {
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) {
		return answer.Code
	}
	return 0
}

func answerOf(err error) string {
	text := err.Error()
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) {
		text = fmt.Sprintf("%d %s", answer.Code, answer.Contents) // which its own text has as a list of numbers
	}
	return text[:min(len(text), maxAnswerBytes)]
}

// refusalError wraps an answer that may be due to what was sent.
type refusalError struct{ error }

func (r *refusalError) Unwrap() error { return r.error }

func isRefusal(err error) bool {
	refusal := (*refusalError)(nil)
	return errors.As(err, &refusal)
}

// errNotRecorded says that the database did not take down what became of an EDU.
var errNotRecorded = errors.New("what became of an EDU was not recorded")

// mayRefuse reports whether an answer may be due to what was sent: a 4xx, but for those that ask to try
// again later.
func (s *session) mayRefuse(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	case statusFailed:
		return s.suspects
	default:
		return status/100 == 4
	}
}

// isolate follows a transaction that was refused: it sends the EDUs of ours in ever smaller pieces, so that the
// one that is refused stands aside alone, and then the host's part by itself.
func (s *session) isolate(part gomatrixserverlib.Transaction, ours []edu, refusal error) error {
	if isEmpty(part) {
		return s.split(ours, refusal)
	}
	if err := s.piece(ours); err != nil && !isRefusal(err) && !errors.Is(err, errNotRecorded) {
		return err
	}
	return s.attempt(part, nil)
}

// piece sends EDUs that were refused together with others.
func (s *session) piece(ours []edu) error {
	err := s.attempt(gomatrixserverlib.Transaction{}, ours)
	switch {
	case err == nil:
		s.done(ours)
		return nil
	case isRefusal(err):
		return s.split(ours, err)
	default:
		return err
	}
}

// split follows the refusal of EDUs. It returns the refusal itself if the destination takes nothing at all: that
// is no fault of theirs.
func (s *session) split(ours []edu, refusal error) error {
	if len(ours) > 1 {
		if err := s.piece(ours[:len(ours)/2]); err != nil {
			return err
		}
		return s.piece(ours[len(ours)/2:])
	}
	return s.confirm(storage.Refusal{EDU: ours[0]}, refusal)
}

// confirm follows the refusal of a single EDU. It stands aside only if the destination accepts another and then
// refuses this one again: the first refusal may have been that of a proxy, or of a server that was about
// to start.
func (s *session) confirm(r storage.Refusal, refusal error) error {
	if err := s.attempt(gomatrixserverlib.Transaction{}, []edu{nothing(r.Origin)}); err != nil {
		return err
	}
	err := s.attempt(gomatrixserverlib.Transaction{}, []edu{r.EDU})
	switch {
	case err == nil:
		return s.arrived(r)
	case isRefusal(err):
		r.Attempts++
		return s.stand(r, refusal)
	default:
		return err
	}
}

// arrived deletes an EDU that was refused at first, from the line or from beside it.
func (s *session) arrived(r storage.Refusal) error {
	if r.Attempts == 0 {
		s.done([]edu{r.EDU})
		return nil
	}
	s.Observe(Sent, 1)
	s.tell(trace.Sent, r.EDU)
	err := s.record(func(ctx context.Context) error { return s.Store.Accepted(ctx, r.Destination, r.Position) })
	s.broken = err != nil
	return err
}

// stand has a refused EDU stand aside for a while, or for good.
func (s *session) stand(r storage.Refusal, refusal error) error {
	outcome, step, log := Refused, trace.Refused, s.Log.WithFields(logrus.Fields{
		"destination": s.d.name, "message_id": r.MessageID, "status": statusOf(refusal), "attempts": r.Attempts,
	})
	r.Answer, r.RetryAt = answerOf(refusal), time.Time{}
	if r.Attempts <= len(pauses) {
		r.RetryAt = s.Now().Add(pauses[r.Attempts-1])
		if s.retryAt.IsZero() || r.RetryAt.Before(s.retryAt) {
			s.retryAt = r.RetryAt
		}
	} else {
		outcome, step = SetAside, trace.SetAside
	}
	kept := false
	err := s.record(func(ctx context.Context) (err error) {
		kept, err = s.keep(ctx, r)
		return err
	})
	if err != nil {
		s.broken = true
		return fmt.Errorf("%w: %w", errNotRecorded, err)
	}
	s.d.sentThrough = max(s.d.sentThrough, r.Position)
	if !kept {
		return nil // discarded by an operator
	}
	s.Observe(outcome, 1)
	s.tell(step, r.EDU)
	if outcome == SetAside {
		log.Error("to_device: another server refuses a message for good, it was set aside")
	} else {
		log.Warn("to_device: another server refuses a message, trying it again later")
	}
	return nil
}

// isDue reports whether a refused EDU is to be sent again; the zero time is never. A time beyond the longest pause was noted by a clock
// that has been set back since: nobody knows how much of the pause is left.
func isDue(retryAt, now time.Time) bool {
	return !retryAt.IsZero() && (!retryAt.After(now) || retryAt.Sub(now) > pauses[len(pauses)-1])
}

// retryRefused sends the refused EDUs that are due, each by itself. It returns an error if the destination
// failed.
func (s *session) retryRefused() error {
	if !isDue(s.retryAt, s.Now()) {
		return nil
	}
	s.suspects = true
	err := s.retryDue()
	if err == nil {
		s.retryAt, err = s.nextRetry()
	}
	if err != nil {
		s.retryAt = s.Now().Add(pauses[0])
		s.Log.WithError(err).WithField("destination", s.d.name).Debug("to_device: sending what was refused again failed")
	}
	if s.broken {
		return nil // no fault of the destination's
	}
	return err
}

func (s *session) retryDue() error {
	defer s.d.heedDiscards()()
	now := s.Now()
	by := now
	if s.retryAt.After(now) {
		by = s.retryAt // of a clock that was ahead
	}
	for range retriedInARow {
		due, err := s.Store.Refused(s.ctx, s.d.name, by, 1) // one may have 16 MiB
		if err != nil {
			s.broken = true
		}
		if err != nil || len(due) == 0 || !isDue(due[0].RetryAt, now) {
			return err
		}
		if err = s.retry(due[0]); err != nil {
			return err
		}
	}
	return nil
}

// retry returns an error if it is not known what the destination thinks of the EDU.
func (s *session) retry(r storage.Refusal) error {
	err := s.attempt(gomatrixserverlib.Transaction{}, []edu{r.EDU})
	switch {
	case err == nil:
		return s.arrived(r)
	case isRefusal(err):
		return s.confirm(r, err)
	default:
		return err
	}
}

func (s *session) nextRetry() (time.Time, error) {
	next, err := s.Store.Refused(s.ctx, s.d.name, time.UnixMicro(math.MaxInt64), 1)
	s.broken = err != nil
	if err != nil || len(next) == 0 {
		return time.Time{}, err
	}
	return next[0].RetryAt, nil
}

// done deletes EDUs that were accepted.
func (s *session) done(ours []edu) {
	if len(ours) == 0 {
		return
	}
	s.Observe(Sent, len(ours))
	s.tell(trace.Sent, ours...)
	s.sent = true
	s.d.sentThrough = ours[len(ours)-1].Position
	s.deleteSent()
}

func (s *session) tell(step trace.Step, edus ...edu) {
	if s.Trace == nil {
		return
	}
	records := make([]trace.Record, 0, len(edus))
	for i := range edus {
		records = append(records, trace.Record{
			Step: step, EDUID: edus[i].MessageID, Destination: edus[i].Destination, Position: edus[i].Position,
		})
	}
	s.Trace.Record(records...)
}

// deleteSent deletes what is done with. Where that fails, the EDUs are not read again, and deleted later.
func (s *session) deleteSent() {
	err := s.record(func(ctx context.Context) error { return s.Store.Sent(ctx, s.d.name, s.d.sentThrough) })
	s.mu.Lock()
	s.d.undeleted = err != nil
	s.mu.Unlock()
	if err != nil {
		s.broken = true
		s.Log.WithError(err).WithField("destination", s.d.name).Warn("to_device: deleting what was sent to another server failed, trying again")
	}
}

func (s *session) record(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), storeTimeout)
	defer cancel()
	return f(ctx)
}
