package sqlite

import "github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"

// The next user of each table is a look into its index, and the smaller one of the two is next, so the time
// grows with the users and not with what is kept for them. Records of other servers' EDUs and of the host's stream
// stand among those of users.
const users = `
	WITH RECURSIVE next (in_messages, in_transactions, found) AS (
		SELECT
			(SELECT min(user_id) FROM todevice_messages WHERE user_id > ?1),
			(SELECT min(user_id) FROM todevice_transactions WHERE user_id > ?1),
			0
		UNION ALL
		SELECT
			CASE WHEN n.in_messages <= coalesce(n.in_transactions, n.in_messages)
				THEN (SELECT min(m.user_id) FROM todevice_messages m WHERE m.user_id > n.in_messages)
				ELSE n.in_messages END,
			CASE WHEN n.in_transactions <= coalesce(n.in_messages, n.in_transactions)
				THEN (SELECT min(t.user_id) FROM todevice_transactions t WHERE t.user_id > n.in_transactions)
				ELSE n.in_transactions END,
			n.found + (substr(coalesce(min(n.in_messages, n.in_transactions), n.in_messages, n.in_transactions), 1, 1) = '@')
		FROM next n
		WHERE coalesce(n.in_messages, n.in_transactions) IS NOT NULL AND n.found < ?2
	), kept (user_id, found) AS (
		SELECT coalesce(min(in_messages, in_transactions), in_messages, in_transactions), found FROM next
	)
	SELECT user_id FROM kept WHERE substr(user_id, 1, 1) = '@' AND found < ?2 ORDER BY found`

const devices = `
	WITH RECURSIVE in_messages (device_id) AS (
		SELECT min(device_id) FROM todevice_messages WHERE user_id = ?1
		UNION ALL
		SELECT (SELECT min(o.device_id) FROM todevice_messages o WHERE o.user_id = ?1 AND o.device_id > n.device_id)
		FROM in_messages n WHERE n.device_id IS NOT NULL
	), in_transactions (device_id) AS (
		SELECT min(device_id) FROM todevice_transactions WHERE user_id = ?1
		UNION ALL
		SELECT (SELECT min(o.device_id) FROM todevice_transactions o WHERE o.user_id = ?1 AND o.device_id > n.device_id)
		FROM in_transactions n WHERE n.device_id IS NOT NULL
	)
	SELECT device_id FROM in_messages WHERE device_id IS NOT NULL
	UNION
	SELECT device_id FROM in_transactions WHERE device_id IS NOT NULL`

const recorded = `
	SELECT 1 FROM todevice_transactions WHERE user_id = ?1 AND device_id = ?2 LIMIT 1`

const forgetDevice = `
	DELETE FROM todevice_transactions
	WHERE user_id = ?1 AND device_id = ?2 AND (event_type, transaction_id) IN (
		SELECT event_type, transaction_id FROM todevice_transactions
		WHERE user_id = ?1 AND device_id = ?2
		ORDER BY event_type, transaction_id LIMIT ?3
	)
	RETURNING 1`

// The queue is walked from its newest message to the first that is in excess, as the line in waiting is. SQLite
// knows the size of a content from the head of its row.
const excess = `
	WITH RECURSIVE kept (ordinal, position, total) AS (
		SELECT * FROM (
			SELECT 1, position, octet_length(content) FROM todevice_messages
			WHERE user_id = ?1 AND device_id = ?2
			ORDER BY position DESC LIMIT 1
		)
		UNION ALL
		SELECT k.ordinal + 1, m.position, k.total + octet_length(m.content)
		FROM kept k
		CROSS JOIN todevice_messages m ON m.user_id = ?1 AND m.device_id = ?2 AND m.position = (
			SELECT max(n.position) FROM todevice_messages n
			WHERE n.user_id = ?1 AND n.device_id = ?2 AND n.position < k.position
		)
		WHERE k.ordinal = 1 OR (?3 = 0 OR k.ordinal <= ?3) AND (?4 = 0 OR k.total <= ?4)
	)
	SELECT position FROM kept
	WHERE ordinal > 1 AND (?3 > 0 AND ordinal > ?3 OR ?4 > 0 AND total > ?4)
	ORDER BY ordinal LIMIT 1`

var cleaner = sqlstore.CleanerStatements{
	Users:    users,
	Devices:  devices,
	Recorded: recorded,
	Forget:   forgetDevice,
	Excess:   excess,
}
