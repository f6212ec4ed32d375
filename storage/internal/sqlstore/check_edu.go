package sqlstore

import (
	"errors"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

const (
	// maxDestinationBytes is how long a server name may be, and what an index takes easily.
	maxDestinationBytes = 255
	// maxAnswerBytes is how much of a remote server's answer is kept.
	maxAnswerBytes = 1024
)

func checkEDU(edu *storage.EDU) error {
	switch {
	case !isDestination(edu.Destination):
		return errors.New("a destination is not a server name")
	case !isText(edu.Origin) || !isText(edu.MessageID):
		return errors.New("the origin or message ID of an EDU is not valid text")
	case !isTextContent(edu.Content):
		return errors.New("the content of an EDU is not valid text")
	}
	return nil
}

// isDestination reports whether EDUs can be kept for the destination. For any other there are none.
func isDestination(name string) bool {
	return name != "" && len(name) <= maxDestinationBytes && isText(name)
}

// cleanAnswer makes text of whatever a remote server answered.
func cleanAnswer(answer string) string {
	answer = answer[:min(len(answer), maxAnswerBytes)]
	return strings.ReplaceAll(strings.ToValidUTF8(answer, "\uFFFD"), "\x00", "\uFFFD")
}
