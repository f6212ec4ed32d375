package postgres

import "github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"

// The lookups by a list of keys are lateral joins, and the deletes go by row address: neither leaves the
// planner the choice of a scan over everybody's rows.

// hurry, true in every WHERE, has the server end a session that goes silent between the statement that
// locks the position record and COMMIT. Otherwise a network that fails there would keep the record locked
// until TCP gives up, two hours by default.
const hurry = `set_config('idle_in_transaction_session_timeout', '5s', true) IS NOT NULL`

const claim = `
	UPDATE todevice_position SET writer = $1, last = greatest(last + 1, $2) WHERE ` + hurry + `
	RETURNING last`

const state = `
	SELECT writer, last FROM todevice_position WHERE ` + hurry + ` FOR UPDATE`

const messages = `
	SELECT position, sender, type, content FROM todevice_messages
	WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4
	ORDER BY position LIMIT $5`

const messagesExcept = `
	SELECT position, sender, type, content FROM todevice_messages
	WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4
		AND sender <> ALL ($6::text[])
	ORDER BY position LIMIT $5`

const stored = `
	SELECT k.user_id, k.device_id, k.event_type, k.transaction_id
	FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
		AS k (user_id, device_id, event_type, transaction_id)
	CROSS JOIN LATERAL (
		SELECT FROM todevice_transactions t
		WHERE t.user_id = k.user_id AND t.device_id = k.device_id
			AND t.event_type = k.event_type AND t.transaction_id = k.transaction_id
		LIMIT 1
	) found`

const forget = `
	DELETE FROM todevice_transactions WHERE ctid = ANY (ARRAY (
		SELECT ctid FROM todevice_transactions WHERE expires_at < $1 ORDER BY expires_at LIMIT $2
	))`

// What was picked tells whether there is more, not what was deleted: a concurrent call may have deleted some
// of it, and the device would pass for done.
const acknowledge = `
	WITH picked AS MATERIALIZED (
		SELECT a.ordinal, m.address
		FROM unnest($1::text[], $2::text[], $3::bigint[])
			WITH ORDINALITY AS a (user_id, device_id, through, ordinal)
		CROSS JOIN LATERAL (
			SELECT q.ctid AS address FROM todevice_messages q
			WHERE q.user_id = a.user_id AND q.device_id = a.device_id AND q.position <= a.through
			ORDER BY q.position LIMIT $4
		) m
	), deleted AS (
		DELETE FROM todevice_messages WHERE ctid = ANY (ARRAY (SELECT address FROM picked))
		RETURNING ctid AS address
	)
	SELECT p.ordinal, count(d.address), count(*) >= $4
	FROM picked p LEFT JOIN deleted d ON d.address = p.address
	GROUP BY p.ordinal ORDER BY p.ordinal`

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
