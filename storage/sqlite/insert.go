package sqlite

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func (dialect) InsertMessages(ctx context.Context, tx *sql.Tx, deliveries []storage.Delivery) error {
	if len(deliveries) == 0 {
		return nil
	}
	statement, err := tx.PrepareContext(ctx, insertMessage)
	if err != nil {
		return err
	}
	defer statement.Close() //nolint:errcheck // the transaction closes it too
	for _, delivery := range deliveries {
		for i, c := range delivery.Copies {
			_, err = statement.ExecContext(ctx, c.UserID, c.DeviceID, int64(delivery.Position)+int64(i),
				delivery.Sender, delivery.Type, string(c.Content))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (dialect) InsertTransactions(ctx context.Context, tx *sql.Tx, transactions []storage.Transaction) error {
	if len(transactions) == 0 {
		return nil
	}
	statement, err := tx.PrepareContext(ctx, insertTransaction)
	if err != nil {
		return err
	}
	defer statement.Close() //nolint:errcheck // the transaction closes it too
	for _, t := range transactions {
		_, err = statement.ExecContext(ctx, t.UserID, t.DeviceID, t.EventType, t.TransactionID, t.ExpiresAt.UnixMicro())
		if err != nil {
			return err
		}
	}
	return nil
}
