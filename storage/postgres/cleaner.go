package postgres

import "github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"

// The next user of each table is a look into its index, and the smaller one of the two is next, so the time
// grows with the users and not with what is kept for them. Records of other servers' EDUs and of the host's stream
// stand among those of users.
const users = `
	WITH RECURSIVE next (in_messages, in_transactions, found) AS (
		SELECT
			(SELECT min(user_id) FROM todevice_messages WHERE user_id > $1::text),
			(SELECT min(user_id) FROM todevice_transactions WHERE user_id > $1::text),
			0::bigint
		UNION ALL
		SELECT
			CASE WHEN n.in_messages <= coalesce(n.in_transactions, n.in_messages)
				THEN (SELECT min(m.user_id) FROM todevice_messages m WHERE m.user_id > n.in_messages)
				ELSE n.in_messages END,
			CASE WHEN n.in_transactions <= coalesce(n.in_messages, n.in_transactions)
				THEN (SELECT min(t.user_id) FROM todevice_transactions t WHERE t.user_id > n.in_transactions)
				ELSE n.in_transactions END,
			n.found + CASE WHEN left(least(n.in_messages, n.in_transactions), 1) = '@' THEN 1 ELSE 0 END
		FROM next n
		WHERE least(n.in_messages, n.in_transactions) IS NOT NULL AND n.found < $2
	)
	SELECT least(in_messages, in_transactions) FROM next
	WHERE left(least(in_messages, in_transactions), 1) = '@' AND found < $2
	ORDER BY found`

const devices = `
	WITH RECURSIVE in_messages (device_id) AS (
		SELECT min(device_id) FROM todevice_messages WHERE user_id = $1
		UNION ALL
		SELECT (SELECT min(o.device_id) FROM todevice_messages o WHERE o.user_id = $1 AND o.device_id > n.device_id)
		FROM in_messages n WHERE n.device_id IS NOT NULL
	), in_transactions (device_id) AS (
		SELECT min(device_id) FROM todevice_transactions WHERE user_id = $1
		UNION ALL
		SELECT (SELECT min(o.device_id) FROM todevice_transactions o WHERE o.user_id = $1 AND o.device_id > n.device_id)
		FROM in_transactions n WHERE n.device_id IS NOT NULL
	)
	SELECT device_id FROM in_messages WHERE device_id IS NOT NULL
	UNION
	SELECT device_id FROM in_transactions WHERE device_id IS NOT NULL`

const recorded = `
	SELECT FROM todevice_transactions WHERE user_id = $1 AND device_id = $2
	ORDER BY event_type, transaction_id LIMIT 1`

// What was picked counts, as in acknowledge.
const forgetDevice = `
	WITH picked AS MATERIALIZED (
		SELECT ctid AS address FROM todevice_transactions
		WHERE user_id = $1 AND device_id = $2
		ORDER BY event_type, transaction_id LIMIT $3
	), deleted AS (
		DELETE FROM todevice_transactions WHERE ctid = ANY (ARRAY (SELECT address FROM picked))
	)
	SELECT FROM picked WHERE (SELECT ` + hurry + `)`

// The queue is walked from its newest message to the first that is in excess, as the line in waiting is. PostgreSQL
// knows the size of a large content without reading it.
const excess = `
	WITH RECURSIVE kept (ordinal, position, total) AS (
		(
			SELECT 1::bigint, position, octet_length(content)::bigint FROM todevice_messages
			WHERE user_id = $1 AND device_id = $2
			ORDER BY position DESC LIMIT 1
		)
		UNION ALL
		SELECT k.ordinal + 1, m.position, k.total + m.bytes
		FROM kept k
		CROSS JOIN LATERAL (
			SELECT position, octet_length(content) AS bytes FROM todevice_messages
			WHERE user_id = $1 AND device_id = $2 AND position < k.position
			ORDER BY position DESC LIMIT 1
		) m
		WHERE k.ordinal = 1 OR ($3::bigint = 0 OR k.ordinal <= $3) AND ($4::bigint = 0 OR k.total <= $4)
	)
	SELECT position FROM kept
	WHERE ordinal > 1 AND ($3 > 0 AND ordinal > $3 OR $4 > 0 AND total > $4)
	ORDER BY ordinal LIMIT 1`

var cleaner = sqlstore.CleanerStatements{
	Users:    users,
	Devices:  devices,
	Recorded: recorded,
	Forget:   forgetDevice,
	Excess:   excess,
}
