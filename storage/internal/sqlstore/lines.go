package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Lines implements storage.Store.
func (s *Store) Lines(ctx context.Context, after string, limit int) ([]storage.Line, error) {
	if limit <= 0 {
		return nil, nil
	}
	if !isText(after) {
		return nil, errors.New("list lines: the destination is not valid text")
	}
	return s.lines(ctx, s.sql.Inspect.Lines, after, limit)
}

// Line implements storage.Store.
func (s *Store) Line(ctx context.Context, destination string) (storage.Line, error) {
	none := storage.Line{Destination: destination}
	if !isDestination(destination) {
		return none, nil
	}
	lines, err := s.lines(ctx, s.sql.Inspect.Line, destination)
	if err != nil || len(lines) == 0 {
		return none, err
	}
	return lines[0], nil
}

func (s *Store) lines(ctx context.Context, statement string, args ...any) (lines []storage.Line, err error) {
	err = s.query(ctx, statement, args, func(rows *sql.Rows) error {
		var line storage.Line
		if err := scanLine(rows, &line, &line.Destination); err != nil {
			return err
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "list lines", err)
	}
	return lines, nil
}

// scanLine scans a row that ends with the columns of a line.
func scanLine(rows *sql.Rows, line *storage.Line, before ...any) error {
	aside := 0
	err := rows.Scan(append(before, &line.Waiting, &line.Bytes, &line.Oldest, &aside, &line.Refused)...)
	line.SetAside = aside - line.Refused
	return err
}

// Aside implements storage.Store.
func (s *Store) Aside(ctx context.Context, destination string, after types.Position, limit int) ([]storage.Refusal, error) {
	refusals, err := s.aside(ctx, destination, after, limit)
	if err != nil {
		return nil, s.failed(ctx, "list what stands aside", err)
	}
	return refusals, nil
}

func (s *Store) aside(ctx context.Context, destination string, after types.Position, limit int) (refusals []storage.Refusal, err error) {
	if !isDestination(destination) || limit <= 0 {
		return nil, nil
	}
	err = s.query(ctx, s.sql.Inspect.Aside, []any{destination, int64(after), limit}, func(rows *sql.Rows) error {
		return scanAside(rows, destination, &refusals)
	})
	return refusals, err
}

func scanAside(rows *sql.Rows, destination string, refusals *[]storage.Refusal) error {
	r := storage.Refusal{EDU: storage.EDU{Destination: destination}}
	var retryAt sql.NullInt64
	if err := rows.Scan(&r.Position, &r.Origin, &r.MessageID, &r.Attempts, &retryAt, &r.Answer); err != nil {
		return err
	}
	r.RetryAt = fromMicros(retryAt)
	*refusals = append(*refusals, r)
	return nil
}

// Readmit implements storage.Store.
func (s *Store) Readmit(ctx context.Context, destination string, position types.Position, at time.Time) (int, error) {
	if at.IsZero() {
		return 0, errors.New("readmit what stands aside: the zero time means never")
	}
	var readmitted, changed int64
	err := s.eachAside(ctx, destination, position, func(ctx context.Context, tx *sql.Tx, after, through types.Position) error {
		result, err := tx.ExecContext(ctx, s.sql.Inspect.Readmit, destination, int64(after), int64(through), at.UnixMicro())
		if err != nil {
			return err
		}
		changed, err = result.RowsAffected()
		return err
	}, func() { readmitted += changed })
	if err != nil {
		err = s.failed(ctx, "readmit what stands aside", err)
	}
	return int(readmitted), err
}

// Discard implements storage.Store.
func (s *Store) Discard(ctx context.Context, destination string, position types.Position) (discarded []storage.Refusal, err error) {
	var chunk []storage.Refusal
	err = s.eachAside(ctx, destination, position, func(ctx context.Context, tx *sql.Tx, after, through types.Position) error {
		chunk = nil
		rows, err := tx.QueryContext(ctx, s.sql.Inspect.Discard, destination, int64(after), int64(through))
		return eachRow(rows, err, func(rows *sql.Rows) error { return scanAside(rows, destination, &chunk) })
	}, func() { discarded = append(discarded, chunk...) })
	if err != nil {
		err = s.failed(ctx, "discard what stands aside", err)
	}
	// The databases return what they delete in an order of their own.
	slices.SortFunc(discarded, func(a, b storage.Refusal) int { return cmp.Compare(a.Position, b.Position) })
	return discarded, err
}

// eachAside runs change in a transaction for every deletedAtOnce of the EDUs that stand aside: the one at a position,
// or all of them for zero. Without any it begins no transaction. It calls committed after each commit.
func (s *Store) eachAside(ctx context.Context, destination string, position types.Position,
	change func(ctx context.Context, tx *sql.Tx, after, through types.Position) error, committed func(),
) error {
	after, limit := types.Position(math.MinInt64), deletedAtOnce
	if position != 0 {
		after, limit = position-1, 1
	}
	for {
		chunk, err := s.aside(ctx, destination, after, limit)
		if err != nil || len(chunk) == 0 {
			return err
		}
		through := chunk[len(chunk)-1].Position
		if position != 0 && through != position {
			return nil
		}
		err = s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error { return change(ctx, tx, after, through) })
		if err != nil {
			return err
		}
		committed()
		if position != 0 || len(chunk) < limit {
			return nil
		}
		after = through
	}
}
