-- +goose Up

-- Each record says from now on when it expires. How long the old ones were to be kept is not known
-- here; seven days is longer than the default of 24 hours.
DROP INDEX todevice_transactions_stored_at;
ALTER TABLE todevice_transactions RENAME COLUMN stored_at TO expires_at;
UPDATE todevice_transactions SET expires_at = expires_at + 604800000000;
CREATE INDEX todevice_transactions_expires_at ON todevice_transactions (expires_at);

-- An EDU waits here from its commit until its destination took or refused it. The primary key is also
-- the order in which they are sent. What stands behind a long content in a row is slow to reach.
CREATE TABLE todevice_outbox (
    destination TEXT NOT NULL,
    position INTEGER NOT NULL,
    origin TEXT NOT NULL,
    message_id TEXT NOT NULL,
    bytes INTEGER NOT NULL GENERATED ALWAYS AS (length(CAST(content AS BLOB))) STORED, -- spares reading content
    content TEXT NOT NULL,
    PRIMARY KEY (destination, position)
) STRICT;

-- The EDUs that their destination refused, so that they hold up nothing behind them.
CREATE TABLE todevice_refused (
    destination TEXT NOT NULL,
    position INTEGER NOT NULL,
    origin TEXT NOT NULL,
    message_id TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    retry_at INTEGER, -- microseconds since 1970; NULL once it was set aside
    answer TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (destination, position)
) STRICT;

CREATE INDEX todevice_refused_retry_at ON todevice_refused (destination, retry_at, position)
    WHERE retry_at IS NOT NULL;

-- +goose Down
DROP TABLE todevice_refused;
DROP TABLE todevice_outbox;
DROP INDEX todevice_transactions_expires_at;
ALTER TABLE todevice_transactions RENAME COLUMN expires_at TO stored_at;
UPDATE todevice_transactions SET stored_at = stored_at - 604800000000;
CREATE INDEX todevice_transactions_stored_at ON todevice_transactions (stored_at);
