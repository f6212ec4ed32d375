// Package e2e tests the built server as its users meet it: as a process, over HTTP, on real
// PostgreSQL and SQLite databases, with mautrix-go as the client. Where clients encrypt there are two kinds: mautrix-go (files named
// encryption_*, with the build tag goolm), and matrix-js-sdk with its crypto in Rust (js_* and the program in js).
//
// Most tests share one server for each database and keep apart by using users of their own; what
// stops or breaks a server has one of its own. Nothing here waits for time to pass: a test waits
// for a condition, under a deadline that only a fault reaches.
package e2e
