package positions

import (
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// waiting are the /sync requests under way.
type waiting struct {
	mu     sync.Mutex
	ofUser map[string]map[*Sync]struct{}
}

func (w *waiting) add(s *Sync) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ofUser == nil {
		w.ofUser = make(map[string]map[*Sync]struct{})
	}
	of := w.ofUser[s.device.UserID]
	if of == nil {
		of = make(map[*Sync]struct{})
		w.ofUser[s.device.UserID] = of
	}
	of[s] = struct{}{}
}

func (w *waiting) remove(s *Sync) {
	w.mu.Lock()
	defer w.mu.Unlock()
	of := w.ofUser[s.device.UserID]
	if delete(of, s); len(of) == 0 {
		delete(w.ofUser, s.device.UserID)
	}
}

func (w *waiting) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, of := range w.ofUser {
		for s := range of {
			s.wake()
		}
	}
}

func (w *waiting) wakeUsers(userIDs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, userID := range userIDs {
		for s := range w.ofUser[userID] {
			s.wake()
		}
	}
}

func (w *waiting) wakeDevices(devices []types.Device) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, device := range devices {
		for s := range w.ofUser[device.UserID] {
			if s.device == device {
				s.wake()
			}
		}
	}
}
