package todevicemodule_test

import (
	"os/exec"
	"strings"
	"testing"
)

// A host's types could only cross the contract if something below it imported the host. The kit is for hosts of any kind too.
func TestNothingBelowTheContractImportsAHost(t *testing.T) {
	const own = "github.com/matrix-org/dendrite/todevicemodule"
	hosts := []string{"github.com/matrix-org/dendrite", "github.com/element-hq/dendrite"}
	isHost := func(path string) bool {
		for _, host := range hosts {
			if (path == host || strings.HasPrefix(path, host+"/")) && path != own && !strings.HasPrefix(path, own+"/") {
				return true
			}
		}
		return strings.HasPrefix(path, own+"/host/") || path == own+"/host" || strings.HasPrefix(path, own+"/hosts/")
	}
	imports := func(pattern string) (found []string) {
		command := exec.Command("go", "list", "-deps", pattern)
		out, err := command.Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pattern, err)
		}
		for _, path := range strings.Fields(string(out)) {
			if isHost(path) {
				found = append(found, path)
			}
		}
		return found
	}
	for _, pattern := range []string{".", "./hosttest/..."} {
		if found := imports(pattern); len(found) > 0 {
			t.Errorf("%s imports %s", pattern, found)
		}
	}
	if found := imports("./host"); len(found) == 0 {
		t.Error("the imports of Dendrite in host were not found")
	}
}
