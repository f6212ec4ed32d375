package sqlite

import (
	"strconv"

	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

// Every message is met in the index alone.
const totals = `
	SELECT q.queues, q.messages, q.oldest, o.waiting, o.bytes, o.oldest,
		(SELECT count(*) FROM todevice_refused),
		(SELECT count(*) FROM todevice_refused WHERE retry_at IS NOT NULL)
	FROM (
		SELECT count(*) AS queues, coalesce(sum(messages), 0) AS messages, coalesce(min(oldest), 0) AS oldest
		FROM (SELECT count(*) AS messages, min(position) AS oldest FROM todevice_messages GROUP BY user_id, device_id)
	) q, (
		SELECT count(*) AS waiting, coalesce(sum(bytes), 0) AS bytes, coalesce(min(position), 0) AS oldest FROM todevice_outbox
	) o`

// counts meets every message in the index alone. bytes is what stands for their size.
func counts(bytes, after, order string) string {
	return `
		SELECT user_id, device_id, count(*) AS messages, ` + bytes + ` AS bytes, min(position) AS oldest, max(position) AS newest
		FROM todevice_messages
		GROUP BY user_id, device_id
		HAVING ` + after + `
		ORDER BY ` + order + `, user_id, device_id LIMIT ?4`
}

// queues asks for the sizes of the queues of one page alone. SQLite knows the size of a content from the head of its row.
func queues(after, order string) string {
	return `
	WITH page AS MATERIALIZED (` + counts(`NULL`, after, order) + `
	)
	SELECT p.user_id, p.device_id, p.messages, (
		SELECT coalesce(sum(octet_length(m.content)), 0) FROM todevice_messages m
		WHERE m.user_id = p.user_id AND m.device_id = p.device_id
	), p.oldest, p.newest
	FROM page p
	ORDER BY ` + order + `, user_id, device_id`
}

const (
	afterBySize = `count(*) < ?1 OR count(*) = ?1 AND (user_id, device_id) > (?2, ?3)`
	afterByAge  = `min(position) > ?1 OR min(position) = ?1 AND (user_id, device_id) > (?2, ?3)`
	bySize      = `messages DESC`
	byAge       = `oldest`
)

var (
	queuesBySize = queues(afterBySize, bySize)
	queuesByAge  = queues(afterByAge, byAge)
	countsBySize = counts(`0`, afterBySize, bySize)
	countsByAge  = counts(`0`, afterByAge, byAge)
)

// The JSON functions fail on what is deeper than 1,000 levels. json_valid doesn't, and finds it invalid.
var envelopes = `
	SELECT position, sender, type, octet_length(content), CASE WHEN json_valid(content)
		THEN substr(content -> '$."org.matrix.msgid"', 1, ` + strconv.Itoa(sqlstore.MaxMessageIDLiteral) + `) END
	FROM todevice_messages
	WHERE user_id = ?1 AND device_id = ?2 AND position > ?3
	ORDER BY position LIMIT ?4`

// The destinations are walked as the users in users are.
const lines = `
	WITH RECURSIVE next (in_outbox, in_refused, ordinal) AS (
		SELECT
			(SELECT min(destination) FROM todevice_outbox WHERE destination > ?1),
			(SELECT min(destination) FROM todevice_refused WHERE destination > ?1),
			1
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
		WHERE coalesce(n.in_outbox, n.in_refused) IS NOT NULL AND n.ordinal < ?2
	), named (destination, ordinal) AS (
		SELECT coalesce(min(in_outbox, in_refused), in_outbox, in_refused), ordinal FROM next
		WHERE coalesce(in_outbox, in_refused) IS NOT NULL AND ordinal <= ?2
	)` + lineOfEach + `
	ORDER BY d.ordinal`

const line = `
	WITH named (destination) AS (SELECT ?1)` + lineOfEach

const lineOfEach = `
	SELECT d.destination,
		(SELECT count(*) FROM todevice_outbox o WHERE o.destination = d.destination),
		(SELECT coalesce(sum(o.bytes), 0) FROM todevice_outbox o WHERE o.destination = d.destination),
		(SELECT coalesce(min(o.position), 0) FROM todevice_outbox o WHERE o.destination = d.destination),
		(SELECT count(*) FROM todevice_refused r WHERE r.destination = d.destination),
		(SELECT count(*) FROM todevice_refused r WHERE r.destination = d.destination AND r.retry_at IS NOT NULL)
	FROM named d`

const aside = `
	SELECT position, origin, message_id, attempts, retry_at, answer FROM todevice_refused
	WHERE destination = ?1 AND position > ?2
	ORDER BY position LIMIT ?3`

const readmit = `
	UPDATE todevice_refused SET retry_at = ?4
	WHERE destination = ?1 AND position > ?2 AND position <= ?3`

const discard = `
	DELETE FROM todevice_refused
	WHERE destination = ?1 AND position > ?2 AND position <= ?3
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
