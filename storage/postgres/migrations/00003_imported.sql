-- +goose Up

-- Up to here the positions of messages do not tell when they were stored: some of them are the host's own, which
-- go on from where the module left its sequence, however long ago that was.
ALTER TABLE todevice_position ADD COLUMN imported BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE todevice_position DROP COLUMN imported;
