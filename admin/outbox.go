package admin

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func (a *API) destinations(c *call) util.JSONResponse {
	return a.answer(a.readDestinations(c))
}

func (a *API) readDestinations(c *call) (*Destinations, error) {
	var after string
	limit, err := c.page(&after)
	if err != nil {
		return nil, err
	}
	if len(after) > maxNameBytes || strings.ContainsRune(after, 0) {
		return nil, invalidCursor()
	}
	lines, err := a.Store.Lines(c, after, limit+1)
	if err != nil {
		return nil, err
	}
	lines, more := cut(lines, limit)
	res := &Destinations{Destinations: make([]Destination, 0, len(lines))}
	for _, line := range lines {
		res.Destinations = append(res.Destinations, a.describe(line))
	}
	if more {
		res.Next = cursor(lines[len(lines)-1].Destination)
	}
	return res, nil
}

func (a *API) destination(c *call) util.JSONResponse {
	line, err := a.line(c)
	if err != nil {
		return a.answer(nil, err)
	}
	return a.answer(a.describe(line), nil)
}

// line returns what is kept for the destination of a call without parameters; an error if that is nothing.
func (a *API) line(c *call) (storage.Line, error) {
	if err := c.only(); err != nil {
		return storage.Line{}, err
	}
	name, err := c.destination()
	if err != nil {
		return storage.Line{}, err
	}
	return a.known(c, name)
}

func (a *API) known(c *call, name string) (storage.Line, error) {
	line, err := a.Store.Line(c, name)
	if err == nil && line.Waiting+line.Refused+line.SetAside == 0 {
		err = notFound("Nothing is kept for %q.", name)
	}
	line.Destination = name
	return line, err
}

func (a *API) describe(line storage.Line) Destination {
	state := a.Outbox.State(line.Destination)
	d := Destination{
		Destination: line.Destination, Waiting: line.Waiting, Bytes: line.Bytes, Oldest: a.oldestEDU(line.Oldest),
		Refused: line.Refused, SetAside: line.SetAside, State: "ready",
	}
	switch {
	case state.GivenUp:
		d.State = "given_up"
	case state.Until.After(a.Now()):
		d.State = "backing_off"
		until := state.Until.UnixMilli()
		d.UntilTS = &until
	}
	if f := state.Failure; f != nil {
		d.LastError = &LastError{TS: f.At.UnixMilli(), Answer: answerOf(f.Answer)}
	}
	return d
}

// answerOf leaves out what is no error code, since that is for the other server to choose.
func answerOf(from outbox.Answer) Answer {
	if !errCode.MatchString(from.ErrCode) {
		from.ErrCode = ""
	}
	return Answer(from)
}

var errCode = regexp.MustCompile(`^[A-Za-z0-9_.]{1,64}$`)

func (a *API) refused(c *call) util.JSONResponse {
	return a.answer(a.readRefused(c))
}

func (a *API) readRefused(c *call) (*Refused, error) {
	name, err := c.destination()
	if err != nil {
		return nil, err
	}
	after, limit, err := c.positionPage()
	if err != nil {
		return nil, err
	}
	found, err := a.Store.Aside(c, name, after, limit+1)
	if err == nil && len(found) == 0 {
		_, err = a.known(c, name)
	}
	if err != nil {
		return nil, err
	}
	found, more := cut(found, limit)
	res := &Refused{Refused: make([]Refusal, 0, len(found))}
	for _, r := range found {
		refusal := Refusal{
			Position: int64(r.Position), MessageID: r.MessageID, Origin: r.Origin, Attempts: r.Attempts,
			Answer: answerOf(outbox.ParseAnswer(r.Answer)),
		}
		if !r.RetryAt.IsZero() {
			at := r.RetryAt.UnixMilli()
			refusal.RetryTS = &at
		}
		res.Refused = append(res.Refused, refusal)
	}
	if more {
		res.Next = cursor(found[len(found)-1].Position)
	}
	return res, nil
}

func (a *API) retry(c *call) util.JSONResponse {
	line, err := a.line(c)
	if err != nil {
		return a.answer(nil, err)
	}
	retried, err := a.Outbox.Retry(c, line.Destination)
	if err == nil || retried > 0 {
		a.tell(c, logrus.Fields{"destination": line.Destination, "retried": retried}, "had a destination tried again")
	}
	return a.answer(&Retried{retried}, err)
}

func (a *API) retryRefused(c *call) util.JSONResponse {
	name, position, err := c.edu()
	if err != nil {
		return a.answer(nil, err)
	}
	retried, err := a.Outbox.RetryOne(c, name, position)
	if err == nil && retried == 0 {
		err = notRefused(name, position)
	}
	if err == nil {
		a.tell(c, logrus.Fields{"destination": name, "position": position}, "had a refused message tried again")
	}
	return a.answer(&Retried{retried}, err)
}

func (a *API) discard(c *call) util.JSONResponse {
	line, err := a.line(c)
	if err != nil {
		return a.answer(nil, err)
	}
	discarded, err := a.drop(c, line.Destination, 0)
	return a.answer(&Discarded{discarded}, err)
}

func (a *API) discardRefused(c *call) util.JSONResponse {
	name, position, err := c.edu()
	if err != nil {
		return a.answer(nil, err)
	}
	discarded, err := a.drop(c, name, position)
	if err == nil && discarded == 0 {
		err = notRefused(name, position)
	}
	return a.answer(&Discarded{discarded}, err)
}

func (a *API) drop(c *call, name string, position types.Position) (int, error) {
	discarded, err := a.Outbox.Discard(c, name, position)
	if len(discarded) > 0 {
		a.tell(c, logrus.Fields{"destination": name, "discarded": len(discarded)}, "discarded what a destination refused")
	}
	return len(discarded), err
}

// edu returns what names one refused EDU in the path of a call without parameters.
func (c *call) edu() (name string, position types.Position, err error) {
	if err = c.only(); err != nil {
		return "", 0, err
	}
	if name, err = c.destination(); err == nil {
		position, err = c.position()
	}
	return name, position, err
}

func notRefused(name string, position types.Position) error {
	return notFound("No refused message for %q is kept at position %s.", name, strconv.FormatInt(int64(position), 10))
}
