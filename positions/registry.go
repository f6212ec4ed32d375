package positions

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// maxStreams leaves room in a token for as many streams that this server does not know.
	maxStreams = maxParts / 2
	// maxKeyBytes is how long a namespaced identifier may be.
	maxKeyBytes = 255
)

// syncKeys are what stands in a /sync response already (client-server API, "Syncing"), and what Dendrite calls one of them.
var syncKeys = []string{
	"next_batch", "rooms", "presence", "account_data", "to_device", "device_lists", "device_one_time_keys_count",
	"device_unused_fallback_key_types", "org.matrix.msc2732.device_unused_fallback_key_types",
}

// Registry has the streams of one server, and the /sync requests that wait for them. A nil Registry has no streams. Its methods are
// safe for concurrent use.
type Registry struct {
	streams []Stream
	waiting waiting
}

// NewRegistry returns a registry of at most 16 streams. Every fault of theirs is in the error.
func NewRegistry(streams ...Stream) (*Registry, error) {
	r := &Registry{streams: slices.Clone(streams)}
	var faults []error
	if len(streams) > maxStreams {
		faults = append(faults, fmt.Errorf("%d streams are too many: a token has room for %d", len(streams), maxStreams))
	}
	for i := range r.streams {
		s := &r.streams[i]
		s.Limits = s.Limits.orDefault()
		if fault := s.fault(streams[:i]); fault != nil {
			faults = append(faults, fmt.Errorf("the stream %q: %w", s.Name, fault))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return r, nil
}

// fault returns why the stream can't be beside others.
func (s *Stream) fault(others []Stream) error {
	switch {
	case !validName(s.Name):
		return fmt.Errorf("a name is a letter from a to z, then a to z, 0 to 9 and _, at most %d in all", maxNameBytes)
	case slices.ContainsFunc(others, func(o Stream) bool { return o.Name == s.Name }):
		return errors.New("another stream has that name")
	case slices.Contains(syncKeys, s.Key):
		return fmt.Errorf("the key %q stands for something else in a /sync response", s.Key)
	case !validKey(s.Key):
		return fmt.Errorf("the key %q is no namespaced identifier: a letter from a to z, then a to z, 0 to 9, _, - and ., at most %d in all", s.Key, maxKeyBytes)
	case strings.HasPrefix(s.Key, "m."):
		return fmt.Errorf("the key %q is the specification's to give: put your domain before it, as in org.example.%[1]s", s.Key)
	case slices.ContainsFunc(others, func(o Stream) bool { return o.Key == s.Key }):
		return fmt.Errorf("another stream has the key %q", s.Key)
	case s.Provider == nil:
		return errors.New("it has no provider")
	case s.Limits.Items < 1 || s.Limits.Bytes < 1:
		return fmt.Errorf("limits of %d items and %d bytes let nothing through", s.Limits.Items, s.Limits.Bytes)
	}
	return nil
}

func validKey(key string) bool {
	if key == "" || len(key) > maxKeyBytes || key[0] < 'a' || key[0] > 'z' {
		return false
	}
	return strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_-.") == ""
}

// Empty reports whether there are no streams.
func (r *Registry) Empty() bool { return r == nil || len(r.streams) == 0 }

// WakeAll says that something may be new for everybody: each /sync that waits looks, and returns if there is something for its device. It
// comes after the news can be read, does not block, and may be called once too often.
func (r *Registry) WakeAll() {
	if !r.Empty() {
		r.waiting.wakeAll()
	}
}

// WakeUsers is WakeAll for all devices of users.
func (r *Registry) WakeUsers(userIDs ...string) {
	if !r.Empty() {
		r.waiting.wakeUsers(userIDs)
	}
}

// WakeDevices is WakeAll for devices.
func (r *Registry) WakeDevices(devices ...types.Device) {
	if !r.Empty() {
		r.waiting.wakeDevices(devices)
	}
}
