-- +goose Up

-- A message waits here from its commit until a sync token covers it. The primary key is also the
-- order in which a device reads its queue.
CREATE TABLE todevice_messages (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    sender TEXT NOT NULL,
    type TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

-- One row for each client request that was carried out, until it is too old to be sent again.
CREATE TABLE todevice_transactions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    stored_at BIGINT NOT NULL, -- microseconds since 1970
    PRIMARY KEY (user_id, device_id, event_type, transaction_id)
);

CREATE INDEX todevice_transactions_stored_at ON todevice_transactions (stored_at);

-- One row: who may commit, and the last position that a commit left behind.
CREATE TABLE todevice_position (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    writer TEXT NOT NULL,
    last BIGINT NOT NULL
);

INSERT INTO todevice_position (id, writer, last) VALUES (1, '', 0);

-- +goose Down
DROP TABLE todevice_messages;
DROP TABLE todevice_transactions;
DROP TABLE todevice_position;
