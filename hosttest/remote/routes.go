package remote

import (
	"encoding/json"
	"net/http"
	"slices"
)

type object = map[string]any

// KnownDevice is the one device that every user of a Server has.
const KnownDevice = "KNOWN"

// routes are the endpoints that a server under test asks for. What is not there is refused as a
// server does that does not know it.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, body func(*http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) { writeAnswer(w, http.StatusOK, body(req)) })
	}
	mux.HandleFunc("PUT /_matrix/federation/v1/send/{txnID}", s.receive)
	mux.HandleFunc("GET /_matrix/key/v2/server", s.servePublicKeys)
	mux.HandleFunc("GET /_matrix/key/v2/server/{keyID}", s.servePublicKeys)
	answer("GET /_matrix/federation/v1/version", func(*http.Request) any {
		return object{"server": object{"name": "remote", "version": "1"}}
	})
	answer("GET /_matrix/federation/v1/user/devices/{userID}", s.devices)
	answer("POST /_matrix/federation/v1/user/keys/query", func(*http.Request) any { return object{"device_keys": object{}} })
	answer("GET /_matrix/federation/v1/query/directory", func(*http.Request) any {
		s.mu.Lock()
		defer s.mu.Unlock()
		return object{"room_id": s.alias, "servers": []string{s.Name}}
	})
	answer("GET /_matrix/federation/v1/query/profile", func(*http.Request) any { return object{} })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeAnswer(w, http.StatusNotFound, object{"errcode": "M_UNRECOGNIZED", "error": "unknown to this server"}) //nolint:misspell // as the specification has it
	})
	return mux
}

func writeAnswer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Alias makes a room known under every alias of the server.
func (s *Server) Alias(roomID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alias = roomID
}

// devices answers which devices a user has.
func (s *Server) devices(req *http.Request) any {
	userID := req.PathValue("userID")
	s.mu.Lock()
	s.asked = append(s.asked, userID)
	silent := s.silent
	s.mu.Unlock()
	if silent {
		<-req.Context().Done()
	}
	const key = "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs"
	keys := object{
		"user_id": userID, "device_id": KnownDevice, "algorithms": []string{},
		"keys": object{"curve25519:" + KnownDevice: key, "ed25519:" + KnownDevice: key}, "signatures": object{},
	}
	return object{"user_id": userID, "stream_id": 1, "devices": []object{{"device_id": KnownDevice, "keys": keys}}}
}

// HideDevices leaves every question for the devices of a user without an answer.
func (s *Server) HideDevices() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// Asked returns the users whose devices were asked for, in order, with repetitions.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}
