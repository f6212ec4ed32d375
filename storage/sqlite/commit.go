package sqlite

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

const fence = `
	UPDATE todevice_position SET last = ?1 WHERE writer = ?2 AND last = ?3`

const insertTransaction = `
	INSERT INTO todevice_transactions (user_id, device_id, event_type, transaction_id, expires_at)
	VALUES (?1, ?2, ?3, ?4, ?5)
	ON CONFLICT DO NOTHING`

const insertMessage = `
	INSERT INTO todevice_messages (user_id, device_id, position, sender, type, content)
	VALUES (?1, ?2, ?3, ?4, ?5, ?6)`

const insertEDU = `
	INSERT INTO todevice_outbox (destination, position, origin, message_id, content)
	VALUES (?1, ?2, ?3, ?4, ?5)`

// Commit inserts row by row: in one process that takes two thirds of the time that rows of 1 KB take 50 at once.
func (d dialect) Commit(ctx context.Context, batch storage.Batch) error {
	texts := []string{fence, insertTransaction, insertMessage, insertEDU}
	statements, err := d.prepared.Statements(ctx, texts...)
	if err != nil {
		return err
	}
	err = d.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := moveOn(ctx, tx.StmtContext(ctx, statements[0]), batch); err != nil {
			return err
		}
		// The transactions go first: if one of them is there, nothing else was done in vain.
		if len(batch.Transactions) > 0 {
			if err := insertTransactions(ctx, tx.StmtContext(ctx, statements[1]), batch.Transactions); err != nil {
				return err
			}
		}
		if len(batch.Deliveries) > 0 {
			if err := insertMessages(ctx, tx.StmtContext(ctx, statements[2]), batch.Deliveries); err != nil {
				return err
			}
		}
		if len(batch.EDUs) > 0 {
			return insertEDUs(ctx, tx.StmtContext(ctx, statements[3]), batch.EDUs)
		}
		return nil
	})
	return d.prepared.Checked(ctx, err, texts...)
}

// moveOn moves the position record on from where the batch expects it.
func moveOn(ctx context.Context, statement *sql.Stmt, batch storage.Batch) error {
	changed, err := rowsAffected(statement.ExecContext(ctx, int64(batch.Last), batch.Writer, int64(batch.Previous)))
	if err == nil && changed == 0 {
		return storage.ErrFenced
	}
	return err
}

func insertTransactions(ctx context.Context, statement *sql.Stmt, transactions []storage.Transaction) error {
	for i := range transactions {
		t := &transactions[i]
		inserted, err := rowsAffected(statement.ExecContext(ctx, t.UserID, t.DeviceID, t.EventType, t.TransactionID, t.ExpiresAt.UnixMicro()))
		if err != nil {
			return err
		}
		if inserted == 0 {
			return storage.ErrStored
		}
	}
	return nil
}

func insertMessages(ctx context.Context, statement *sql.Stmt, deliveries []storage.Delivery) error {
	for i := range deliveries {
		delivery := &deliveries[i]
		for j := range delivery.Copies {
			c := &delivery.Copies[j]
			_, err := statement.ExecContext(ctx, c.UserID, c.DeviceID, int64(delivery.Position)+int64(j),
				delivery.Sender, delivery.Type, string(c.Content))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func insertEDUs(ctx context.Context, statement *sql.Stmt, edus []storage.EDU) error {
	for i := range edus {
		edu := &edus[i]
		_, err := statement.ExecContext(ctx, edu.Destination, int64(edu.Position), edu.Origin, edu.MessageID, string(edu.Content))
		if err != nil {
			return err
		}
	}
	return nil
}

func rowsAffected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
