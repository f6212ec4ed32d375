package outbox

import (
	"encoding/json"
	"errors"
	"regexp"
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
	// Error is the error of the answer, or why there was none: at most 200 characters. What it may quote of a message is left
	// out: it ends at the first object or list, and double quotes have nothing in them.
	Error string
}

func answerTo(err error) Answer {
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) {
		return newAnswer(answer.Code, string(answer.Contents))
	}
	return Answer{Error: clip(withoutQuotes(err.Error(), "{"))} // an address may have brackets
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
			a.Error = clip(withoutQuotes(text, "{["))
		}
	}
	return a
}

// quoted is a text in double quotes, or without the second one all that is left.
var quoted = regexp.MustCompile(`(?s)"(?:[^"\\]|\\.)*(?:"|\\?\z)`)

// withoutQuotes returns a text up to the first of the characters that JSON begins with, and without what is in double quotes:
// parsers show there what they could not parse.
func withoutQuotes(text, begins string) string {
	const omission = "…"
	at := strings.IndexAny(text, begins)
	if at >= 0 {
		text = text[:at]
	}
	text = quoted.ReplaceAllLiteralString(text, `"`+omission+`"`)
	if at >= 0 {
		text += omission
	}
	return text
}

func clip(text string) string {
	text = strings.ToValidUTF8(text, "�")
	if runes := []rune(text); len(runes) > maxErrorRunes {
		return string(runes[:maxErrorRunes])
	}
	return text
}
