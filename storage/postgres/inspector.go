package postgres

import (
	"strconv"

	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

// Every message is met in the index alone, once VACUUM has seen it.
const totals = `
	SELECT q.queues, q.messages, q.oldest, o.waiting, o.bytes, o.oldest, r.aside, r.refused
	FROM (
		SELECT count(*) AS queues, coalesce(sum(messages), 0)::bigint AS messages, coalesce(min(oldest), 0) AS oldest
		FROM (SELECT count(*) AS messages, min(position) AS oldest FROM todevice_messages GROUP BY user_id, device_id) queue
	) q, (
		SELECT count(*) AS waiting, coalesce(sum(bytes), 0) AS bytes, coalesce(min(position), 0) AS oldest FROM todevice_outbox
	) o, (
		SELECT (SELECT count(*) FROM todevice_refused) AS aside,
			(SELECT count(*) FROM todevice_refused WHERE retry_at IS NOT NULL) AS refused
	) r`

// counts meets every message in the index alone. bytes is what stands for their size.
func counts(bytes, after, order string) string {
	return `
		SELECT user_id, device_id, count(*) AS messages, ` + bytes + ` AS bytes, min(position) AS oldest, max(position) AS newest
		FROM todevice_messages
		GROUP BY user_id, device_id
		HAVING ` + after + `
		ORDER BY ` + order + `, user_id, device_id LIMIT $4`
}

// queues asks for the sizes of the queues of one page alone. PostgreSQL knows the size of a large content without
// reading it.
func queues(after, order string) string {
	return `
	WITH page AS MATERIALIZED (` + counts(`NULL`, after, order) + `
	)
	SELECT p.user_id, p.device_id, p.messages, contents.bytes, p.oldest, p.newest
	FROM page p
	CROSS JOIN LATERAL (
		SELECT coalesce(sum(octet_length(m.content)), 0) AS bytes FROM todevice_messages m
		WHERE m.user_id = p.user_id AND m.device_id = p.device_id
	) contents
	ORDER BY ` + order + `, user_id, device_id`
}

const (
	afterBySize = `count(*) < $1 OR count(*) = $1 AND (user_id, device_id) > ($2, $3)`
	afterByAge  = `min(position) > $1 OR min(position) = $1 AND (user_id, device_id) > ($2, $3)`
	bySize      = `messages DESC`
	byAge       = `oldest`
)

var (
	queuesBySize = queues(afterBySize, bySize)
	queuesByAge  = queues(afterByAge, byAge)
	countsBySize = counts(`0`, afterBySize, bySize)
	countsByAge  = counts(`0`, afterByAge, byAge)
)

// The JSON functions fail on contents that are valid: too deep, or with \u0000 or half a surrogate pair in a string. The
// expression can't. It takes the first org.matrix.msgid at whatever depth, sees none whose own name is
// written with escapes, and none beyond the first MiB.
var envelopes = `
	SELECT position, sender, type, octet_length(content), left(
		substring(left(content, 1048576) FROM $re$[{,]\s*"org\.matrix\.msgid"\s*:\s*("(?:[^"\\]|\\.)*"?)$re$),
		` + strconv.Itoa(sqlstore.MaxMessageIDLiteral) + `)
	FROM todevice_messages
	WHERE user_id = $1 AND device_id = $2 AND position > $3
	ORDER BY position LIMIT $4`

// The destinations are walked as the users in users are.
const lines = `
	WITH RECURSIVE next (in_outbox, in_refused, ordinal) AS (
		SELECT
			(SELECT min(destination) FROM todevice_outbox WHERE destination > $1::text),
			(SELECT min(destination) FROM todevice_refused WHERE destination > $1::text),
			1::bigint
		UNION ALL
		SELECT
			CASE WHEN n.in_outbox <= coalesce(n.in_refused, n.in_outbox)
				THEN (SELECT min(o.destination) FROM todevice_outbox o WHERE o.destination > n.in_outbox)
				ELSE n.in_outbox END,
			CASE WHEN n.in_refused <= coalesce(n.in_outbox, n.in_refused)
				THEN (SELECT min(r.destination) FROM todevice_refused r WHERE r.destination > n.in_refused)
				ELSE n.in_refused END,
			n.ordinal + 1
		FROM next n
		WHERE least(n.in_outbox, n.in_refused) IS NOT NULL AND n.ordinal < $2
	), named (destination, ordinal) AS (
		SELECT least(in_outbox, in_refused), ordinal FROM next
		WHERE least(in_outbox, in_refused) IS NOT NULL AND ordinal <= $2
	)` + lineOfEach + `
	ORDER BY d.ordinal`

const line = `
	WITH named (destination) AS (SELECT $1::text)` + lineOfEach

const lineOfEach = `
	SELECT d.destination, w.waiting, w.bytes, w.oldest,
		(SELECT count(*) FROM todevice_refused r WHERE r.destination = d.destination),
		(SELECT count(*) FROM todevice_refused r WHERE r.destination = d.destination AND r.retry_at IS NOT NULL)
	FROM named d
	CROSS JOIN LATERAL (
		SELECT count(*) AS waiting, coalesce(sum(o.bytes), 0) AS bytes, coalesce(min(o.position), 0) AS oldest
		FROM todevice_outbox o WHERE o.destination = d.destination
	) w`

const aside = `
	SELECT position, origin, message_id, attempts, retry_at, answer FROM todevice_refused
	WHERE destination = $1 AND position > $2
	ORDER BY position LIMIT $3`

const readmit = `
	UPDATE todevice_refused SET retry_at = $4
	WHERE destination = $1 AND position > $2 AND position <= $3 AND ` + hurry

const discard = `
	DELETE FROM todevice_refused
	WHERE destination = $1 AND position > $2 AND position <= $3 AND ` + hurry + `
	RETURNING position, origin, message_id, attempts, retry_at, answer`

var inspector = sqlstore.InspectorStatements{
	Totals:       totals,
	QueuesBySize: queuesBySize,
	QueuesByAge:  queuesByAge,
	CountsBySize: countsBySize,
	CountsByAge:  countsByAge,
	Envelopes:    envelopes,
	Lines:        lines,
	Line:         line,
	Aside:        aside,
	Readmit:      readmit,
	Discard:      discard,
}
