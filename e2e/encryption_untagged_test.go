//go:build !goolm

package e2e

import "testing"

// The tests with clients that encrypt are left out without the tag, with which the library encrypts without libolm.
func TestEncryptedIsLeftOut(t *testing.T) {
	t.Fatal("run the end-to-end tests with -tags goolm")
}
