package sqlite

// The statements whose plans the tests look at.
const (
	MessagesStatement       = messages
	MessagesExceptStatement = messagesExcept
	StoredStatement         = stored
	ForgetStatement         = forget
	CoveredStatement        = covered
	AcknowledgeStatement    = acknowledge
)
