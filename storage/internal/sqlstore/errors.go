package sqlstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// Classifier knows a driver's errors.
type Classifier interface {
	// Transient reports whether the database, its driver or the connection failed in a way that passes.
	// Errors of the context are none of its business.
	Transient(err error) bool

	// Refuses reports whether the database says that it will never take the values of a row.
	Refuses(err error) bool

	// Redact returns err, or a copy that shows no stored value.
	Redact(err error) error
}

// Translate turns an error of a database call into what storage.Store promises. It returns nil
// for nil.
func Translate(ctx context.Context, classifier Classifier, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, storage.ErrFenced) || errors.Is(err, storage.ErrStored) || errors.Is(err, storage.ErrLocked) {
		return fmt.Errorf("%s: %w", what, err)
	}
	transient, refused := classifier.Transient(err), classifier.Refuses(err)
	err = classifier.Redact(err)
	// The drivers report the end of a context in words of their own.
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	switch {
	case transient || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: %w", what, storage.ErrTransient, err)
	case refused:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, storage.ErrFault, err)
}

func (s *Store) failed(ctx context.Context, what string, err error) error {
	return Translate(ctx, s.dialect, what, err)
}
