package postgres

// The statements whose plans the tests look at.
const (
	MessagesStatement       = messages
	MessagesExceptStatement = messagesExcept
	StoredStatement         = stored
	ForgetStatement         = forget
	AcknowledgeStatement    = acknowledge
)
