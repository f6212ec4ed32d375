package sqlite

import "github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"

const claim = `
	UPDATE todevice_position SET writer = ?1, last = max(last + 1, ?2) RETURNING last`

const state = `
	SELECT writer, last FROM todevice_position`

const messages = `
	SELECT position, sender, type, content FROM todevice_messages
	WHERE user_id = ?1 AND device_id = ?2 AND position > ?3 AND position <= ?4
	ORDER BY position LIMIT ?5`

const messagesExcept = `
	SELECT position, sender, type, content FROM todevice_messages
	WHERE user_id = ?1 AND device_id = ?2 AND position > ?3 AND position <= ?4
		AND sender NOT IN (SELECT value FROM json_each(?6))
	ORDER BY position LIMIT ?5`

const stored = `
	SELECT k.value ->> 0, k.value ->> 1, k.value ->> 2, k.value ->> 3 FROM json_each(?1) k
	WHERE EXISTS (
		SELECT 1 FROM todevice_transactions t
		WHERE t.user_id = k.value ->> 0 AND t.device_id = k.value ->> 1
			AND t.event_type = k.value ->> 2 AND t.transaction_id = k.value ->> 3
	)`

const forget = `
	DELETE FROM todevice_transactions WHERE (user_id, device_id, event_type, transaction_id) IN (
		SELECT user_id, device_id, event_type, transaction_id FROM todevice_transactions
		WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2
	)`

const covered = `
	SELECT a.key FROM json_each(?1) a
	WHERE EXISTS (
		SELECT 1 FROM todevice_messages m
		WHERE m.user_id = a.value ->> 0 AND m.device_id = a.value ->> 1 AND m.position <= a.value ->> 2
	)
	ORDER BY a.key`

const acknowledge = `
	DELETE FROM todevice_messages WHERE rowid IN (
		SELECT rowid FROM todevice_messages
		WHERE user_id = ?1 AND device_id = ?2 AND position <= ?3
		ORDER BY position LIMIT ?4
	)`

func (dialect) Statements() sqlstore.Statements {
	return sqlstore.Statements{
		Claim:          claim,
		State:          state,
		Messages:       messages,
		MessagesExcept: messagesExcept,
		Stored:         stored,
		Forget:         forget,
		Destinations:   destinations,
		Waiting:        waiting,
		Sent:           sent,
		Refuse:         refuse,
		Leave:          leave,
		Refused:        refused,
		Accepted:       accepted,
		Present:        present,
		Clean:          cleaner,
		Inspect:        inspector,
	}
}
