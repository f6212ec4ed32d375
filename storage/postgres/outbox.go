package postgres

// Each smallest destination beyond the last one is a look into the index, so the time grows with the
// destinations and not with what waits for them.
const destinations = `
	WITH RECURSIVE waiting (destination) AS (
		SELECT min(destination) FROM todevice_outbox
		UNION ALL
		SELECT (SELECT min(o.destination) FROM todevice_outbox o WHERE o.destination > w.destination)
		FROM waiting w WHERE w.destination IS NOT NULL
	), refused (destination) AS (
		SELECT min(destination) FROM todevice_refused WHERE retry_at IS NOT NULL
		UNION ALL
		SELECT (
			SELECT min(o.destination) FROM todevice_refused o
			WHERE o.retry_at IS NOT NULL AND o.destination > r.destination
		)
		FROM refused r WHERE r.destination IS NOT NULL
	), kept (destination, waiting, retry_at) AS (
		SELECT destination, 1, NULL::bigint FROM waiting WHERE destination IS NOT NULL
		UNION ALL
		SELECT r.destination, 0, (SELECT min(o.retry_at) FROM todevice_refused o WHERE o.destination = r.destination)
		FROM refused r WHERE r.destination IS NOT NULL
	)
	SELECT destination, max(waiting), min(retry_at) FROM kept GROUP BY destination`

// The line is walked from one EDU to the next, without touching a content, until the limits are reached.
// A running sum over an ordered scan would leave the planner the choice to sort all of a line that grew
// since it last counted.
const waiting = `
	WITH RECURSIVE line (ordinal, position, total) AS (
		SELECT 0::bigint, $2::bigint, 0::bigint
		UNION ALL
		SELECT l.ordinal + 1, o.position, l.total + o.bytes
		FROM line l
		CROSS JOIN LATERAL (
			SELECT position, bytes FROM todevice_outbox
			WHERE destination = $1 AND position > l.position AND position <= $3
			ORDER BY position LIMIT 1
		) o
		WHERE l.ordinal < $4 AND (l.ordinal = 0 OR l.total + o.bytes <= $5)
	)
	SELECT position, origin, message_id, content FROM todevice_outbox
	WHERE destination = $1 AND position > $2 AND position <= (SELECT max(position) FROM line)
	ORDER BY position`

// What was picked counts, as in acknowledge.
const sent = `
	WITH picked AS MATERIALIZED (
		SELECT ctid AS address FROM todevice_outbox
		WHERE destination = $1 AND position <= $2
		ORDER BY position LIMIT $3
	), deleted AS (
		DELETE FROM todevice_outbox WHERE ctid = ANY (ARRAY (SELECT address FROM picked))
	)
	SELECT FROM picked WHERE (SELECT ` + hurry + `)`

const refuse = `
	INSERT INTO todevice_refused (destination, position, origin, message_id, content, attempts, retry_at, answer)
	SELECT $1, $2::bigint, $3, $4, $5, $6::integer, $7::bigint, $8 WHERE ` + hurry + `
	ON CONFLICT (destination, position) DO UPDATE SET
		origin = excluded.origin, message_id = excluded.message_id, content = excluded.content,
		attempts = excluded.attempts, retry_at = excluded.retry_at, answer = excluded.answer`

const leave = `
	DELETE FROM todevice_outbox WHERE destination = $1 AND position = $2`

const refused = `
	SELECT position, origin, message_id, content, attempts, retry_at, answer FROM todevice_refused
	WHERE destination = $1 AND retry_at <= $2
	ORDER BY retry_at, position LIMIT $3`

const accepted = `
	DELETE FROM todevice_refused WHERE destination = $1 AND position = $2 AND ` + hurry
