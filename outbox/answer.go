package outbox

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/matrix-org/gomatrix"
)

// maxErrorRunes is how much of an error is shown. It is the other server's to choose.
const maxErrorRunes = 200

// Answer is what another server answered, for an operator: of its body only what says why.
type Answer struct {
	Status  int    // zero if there was no answer
	ErrCode string // empty if the answer was no standard error response
	// Error is the error of the answer, or why there was none: at most 200 characters.
	Error string
}

func answerTo(err error) Answer {
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) {
		return newAnswer(answer.Code, string(answer.Contents))
	}
	return Answer{Error: clip(err.Error())}
}

// ParseAnswer reads the Answer of a storage.Refusal.
func ParseAnswer(kept string) Answer {
	code, body, _ := strings.Cut(kept, " ")
	status, err := strconv.Atoi(code)
	if err != nil {
		return Answer{}
	}
	return newAnswer(status, body)
}

// newAnswer takes what it finds of a body, which may have been cut off.
func newAnswer(status int, body string) Answer {
	a := Answer{Status: status}
	decoder := json.NewDecoder(strings.NewReader(body[:min(len(body), 8*maxAnswerBytes)]))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return a
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return a
		}
		var value any
		if err = decoder.Decode(&value); err != nil {
			return a
		}
		text, _ := value.(string)
		switch key {
		case "errcode":
			a.ErrCode = clip(text)
		case "error":
			a.Error = clip(text)
		}
	}
	return a
}

func clip(text string) string {
	text = strings.ToValidUTF8(text, "�")
	if runes := []rune(text); len(runes) > maxErrorRunes {
		return string(runes[:maxErrorRunes])
	}
	return text
}
