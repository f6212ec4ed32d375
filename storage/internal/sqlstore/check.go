package sqlstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// The databases disagree about text that is not valid UTF-8, holds NUL or is too long for an index:
// PostgreSQL refuses it, SQLite stores it. The checks make it an error everywhere.

func checkBatch(batch storage.Batch) error {
	if err := checkWriter(batch.Writer); err != nil {
		return err
	}
	if batch.Last <= batch.Previous {
		return fmt.Errorf("the batch does not move the position on: from %d to %d", batch.Previous, batch.Last)
	}
	for _, delivery := range batch.Deliveries {
		if err := checkDelivery(delivery, batch.Last); err != nil {
			return err
		}
	}
	for i := range batch.EDUs {
		if err := checkPosition(batch.EDUs[i].Position, batch.Last); err != nil {
			return err
		}
		if err := checkEDU(&batch.EDUs[i]); err != nil {
			return err
		}
	}
	for _, transaction := range batch.Transactions {
		if err := checkKey(transaction.TransactionKey); err != nil {
			return err
		}
	}
	return nil
}

func checkDelivery(delivery storage.Delivery, last types.Position) error {
	// Subtracting on this side can't overflow.
	if err := checkPosition(delivery.Position, last-types.Position(max(0, len(delivery.Copies)-1))); err != nil {
		return err
	}
	if !isText(delivery.Sender) || !isText(delivery.Type) {
		return errors.New("a sender or type is not valid text")
	}
	for _, c := range delivery.Copies {
		if err := checkDevice(c.Device); err != nil {
			return err
		}
		if !isTextContent(c.Content) {
			return fmt.Errorf("the content for device %q of %q is not valid text", c.DeviceID, c.UserID)
		}
	}
	return checkDistinct(delivery.Copies)
}

// checkDistinct is here since each copy has a position of its own, so that the tables would take two for one
// device.
func checkDistinct(copies []storage.Copy) error {
	if len(copies) < 2 {
		return nil
	}
	seen := make(map[types.Device]struct{}, len(copies))
	for i := range copies {
		device := copies[i].Device
		if _, twice := seen[device]; twice {
			return fmt.Errorf("device %q of %q would get a message twice", device.DeviceID, device.UserID)
		}
		seen[device] = struct{}{}
	}
	return nil
}

func checkPosition(position, last types.Position) error {
	if position > last {
		return fmt.Errorf("a message or EDU has position %d or a later one, but room in the batch only up to %d", position, last)
	}
	return nil
}

func checkWriter(writer string) error {
	if writer == "" || !isText(writer) {
		return errors.New("the writer has no valid identity")
	}
	return nil
}

func checkDevice(device types.Device) error { return checkIDs(device.UserID, device.DeviceID) }

func checkKey(key types.TransactionKey) error {
	return checkIDs(key.UserID, key.DeviceID, key.EventType, key.TransactionID)
}

func checkIDs(ids ...string) error {
	length := 0
	for _, id := range ids {
		if !isText(id) {
			return errors.New("an ID is not valid text")
		}
		length += len(id)
	}
	if length > storage.MaxKeyBytes {
		return fmt.Errorf("the IDs of a device or transaction take %d bytes, more than %d", length, storage.MaxKeyBytes)
	}
	return nil
}

func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func isTextContent(b []byte) bool { return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 }

// onlyText drops what no database could have stored. A client may put anything on its list of
// ignored users.
func onlyText(values []string) []string {
	return slices.DeleteFunc(slices.Clone(values), func(s string) bool { return !isText(s) })
}
