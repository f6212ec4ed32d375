package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

type edu = storage.EDU

const (
	// maxEDUs is how many EDUs a transaction may have (server-server API, "Transactions").
	maxEDUs = 100
	// maxTransactionBytes bounds a transaction with EDUs of ours, unless a single one is larger: common
	// reverse proxies take no more by default.
	maxTransactionBytes = 1 << 20
	// envelopeBytes is what an EDU or a PDU takes beside its content, about.
	envelopeBytes = 100
)

// attempt is a transaction of which it is not known whether its destination has it. It is repeated as it
// was, under its ID; a transaction that differs from it gets another ID.
type attempt struct {
	digest   [sha256.Size]byte
	id       gomatrixserverlib.TransactionID
	ts       spec.Timestamp
	through  types.Position // of the EDUs of ours in it; zero if there were none
	failures int            // how often the destination answered that it failed
}

// take returns the first EDUs in line that one transaction may carry: those of one origin, and after a failure
// those that it carried.
func (s *session) take() []edu {
	s.mu.Lock()
	s.version = s.d.version
	s.drained = !s.d.waiting
	s.mu.Unlock()
	if s.drained || s.broken {
		return nil
	}
	limit, bytes := maxEDUs, maxTransactionBytes-maxEDUs*envelopeBytes
	if s.pending && s.fit(nil) {
		limit, bytes = limit-len(s.host.EDUs), bytes-size(s.host)
	}
	ours, err := s.read(limit, bytes)
	if err != nil {
		s.broken = true
		s.Log.WithError(err).WithField("destination", s.d.name).Warn("to_device: reading what waits for another server failed, trying again")
		return nil
	}
	s.drained = len(ours) == 0
	for i := range ours {
		if ours[i].Origin != ours[0].Origin {
			return ours[:i]
		}
	}
	return ours
}

func (s *session) read(limit, bytes int) ([]edu, error) {
	if last := s.d.last.through; last > s.d.sentThrough {
		ours, err := s.Store.Waiting(s.ctx, s.d.name, s.d.sentThrough, last, limit, bytes)
		if err != nil || len(ours) > 0 {
			return ours, err
		}
	}
	return s.Store.Waiting(s.ctx, s.d.name, s.d.sentThrough, math.MaxInt64, limit, bytes)
}

// fit reports whether the host's part and EDUs of ours may share a transaction.
func (s *session) fit(ours []edu) bool {
	bytes := size(s.host)
	for i := range ours {
		if ours[i].Origin != string(s.host.Origin) {
			return false
		}
		bytes += envelopeBytes + len(ours[i].Content)
	}
	room := maxEDUs
	if len(ours) == 0 {
		room-- // for one at least
	}
	return len(ours)+len(s.host.EDUs) <= room && (bytes <= maxTransactionBytes)
}

func size(t gomatrixserverlib.Transaction) (bytes int) {
	for _, pdu := range t.PDUs {
		bytes += envelopeBytes + len(pdu)
	}
	for i := range t.EDUs {
		bytes += envelopeBytes + len(t.EDUs[i].Content)
	}
	return bytes
}

// attempt sends one transaction. ours come first in it.
func (s *session) attempt(part gomatrixserverlib.Transaction, ours []edu) error {
	t := gomatrixserverlib.Transaction{
		Origin:         s.host.Origin,
		Destination:    s.host.Destination,
		OriginServerTS: spec.AsTimestamp(s.Now()),
		PDUs:           part.PDUs,
	}
	if len(ours) > 0 {
		t.Origin = spec.ServerName(ours[0].Origin)
	}
	if t.PDUs == nil {
		t.PDUs = []json.RawMessage{}
	}
	for i := range ours {
		if err := canSign(ours[i]); err != nil {
			return &refusalError{err}
		}
		t.EDUs = append(t.EDUs, asEDU(ours[i]))
	}
	t.EDUs = append(t.EDUs, part.EDUs...)
	now := s.identify(&t, ours)

	ctx := s.ctx
	if len(t.PDUs) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deliverTimeout)
		defer cancel()
	}
	err := s.deliver(ctx, t)
	s.note(s.d, err)
	if err == nil {
		s.d.last = attempt{}
		return nil
	}
	if statusOf(err) == statusFailed {
		now.failures++
		s.suspects = s.suspects || now.failures > failuresAlike
	}
	if s.mayRefuse(statusOf(err)) {
		s.d.last = attempt{}
		return &refusalError{err}
	}
	s.d.last = now
	return err
}

// identify gives a transaction the ID and the time under which it was sent before, or new ones.
func (s *session) identify(t *gomatrixserverlib.Transaction, ours []edu) attempt {
	now := attempt{digest: digest(t)}
	if len(ours) > 0 {
		now.through = ours[len(ours)-1].Position
	}
	// The host's part may have grown and left less room; what is at fault is still there or goes through.
	if last := s.d.last; 0 < now.through && now.through <= last.through {
		now.failures = last.failures
	}
	if last := s.d.last; last.id != "" && last.digest == now.digest {
		now.id, now.ts = last.id, last.ts
	} else {
		now.ts = t.OriginServerTS
		now.id = idOf(s.host.TransactionID, now.digest, now.ts)
	}
	t.TransactionID, t.OriginServerTS = now.id, now.ts
	return now
}

// idOf returns the ID of a transaction. The host's says when its part was put together; two transactions of
// one ID, digest and time are equal.
func idOf(host gomatrixserverlib.TransactionID, digest [sha256.Size]byte, ts spec.Timestamp) gomatrixserverlib.TransactionID {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(digest[:], uint64(ts)))
	return host + gomatrixserverlib.TransactionID("-"+hex.EncodeToString(sum[:8]))
}

// digest tells transactions of different content apart.
func digest(t *gomatrixserverlib.Transaction) (sum [sha256.Size]byte) {
	h := sha256.New()
	write := func(parts ...[]byte) {
		for _, p := range parts {
			_ = binary.Write(h, binary.BigEndian, uint64(len(p)))
			_, _ = h.Write(p)
		}
	}
	write([]byte(t.Origin))
	for _, pdu := range t.PDUs {
		write([]byte("pdu"), pdu)
	}
	for i := range t.EDUs {
		write([]byte("edu"), []byte(t.EDUs[i].Type), []byte(t.EDUs[i].Origin), t.EDUs[i].Content)
	}
	h.Sum(sum[:0])
	return sum
}
