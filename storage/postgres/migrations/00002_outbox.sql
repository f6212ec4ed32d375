-- +goose Up

-- Each record says from now on when it expires. How long the old ones were to be kept is not known
-- here; seven days is longer than the default of 24 hours. Changing the type writes the table anew, which an
-- UPDATE would leave half dead.
ALTER TABLE todevice_transactions RENAME COLUMN stored_at TO expires_at;
ALTER TABLE todevice_transactions ALTER COLUMN expires_at TYPE BIGINT USING expires_at + 604800000000;
ALTER INDEX todevice_transactions_stored_at RENAME TO todevice_transactions_expires_at;

-- An EDU waits here from its commit until its destination took or refused it. The primary key is also
-- the order in which they are sent.
CREATE TABLE todevice_outbox (
    destination TEXT NOT NULL,
    position BIGINT NOT NULL,
    origin TEXT NOT NULL,
    message_id TEXT NOT NULL,
    bytes INTEGER NOT NULL GENERATED ALWAYS AS (octet_length(content)) STORED, -- spares reading content
    content TEXT NOT NULL,
    PRIMARY KEY (destination, position)
);

-- The EDUs that their destination refused, so that they hold up nothing behind them.
CREATE TABLE todevice_refused (
    destination TEXT NOT NULL,
    position BIGINT NOT NULL,
    origin TEXT NOT NULL,
    message_id TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    retry_at BIGINT, -- microseconds since 1970; NULL once it was set aside
    answer TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (destination, position)
);

CREATE INDEX todevice_refused_retry_at ON todevice_refused (destination, retry_at, position)
    WHERE retry_at IS NOT NULL;

-- +goose Down
DROP TABLE todevice_refused;
DROP TABLE todevice_outbox;
ALTER INDEX todevice_transactions_expires_at RENAME TO todevice_transactions_stored_at;
ALTER TABLE todevice_transactions ALTER COLUMN expires_at TYPE BIGINT USING expires_at - 604800000000;
ALTER TABLE todevice_transactions RENAME COLUMN expires_at TO stored_at;
