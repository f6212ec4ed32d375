package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// variantsDir has a directory for each host, with the files that differ there under the paths of those that they replace and variantSuffix.
const (
	variantsDir   = "hosts/generate/variants"
	variantSuffix = ".txt"
)

// variant is what a host has in place of a file of the first host.
type variant struct {
	path    string // below variantsDir
	content []byte
}

// readVariants returns the variants of a host in dir, by the path of the file that each replaces.
func readVariants(dir, host string) (map[string]variant, error) {
	variants := make(map[string]variant)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		below, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		of, replaced, _ := strings.Cut(below, string(filepath.Separator))
		name, named := strings.CutSuffix(replaced, variantSuffix)
		if !named || !slices.ContainsFunc(hosts, func(h target) bool { return h.name == of }) {
			return fmt.Errorf("%s is not used: a variant has the path HOST/FILE%s", path, variantSuffix)
		}
		if of != host {
			return nil
		}
		content, err := os.ReadFile(path)
		variants[name] = variant{path: below, content: content}
		return err
	})
	return variants, err
}

// replaces is the first line of a variant, with the SHA-256 of the file that it was made from.
const replaces = "// In place of %x.\n"

// replace returns what takes the place of a file. A variant that was made from another version of the file may lack what has changed since.
func (v variant) replace(original []byte) ([]byte, error) {
	first := fmt.Appendf(nil, replaces, sha256.Sum256(original))
	rest, ok := bytes.CutPrefix(v.content, first)
	if !ok {
		return nil, fmt.Errorf("%s was made from another version of its file: take over what has changed there, and write as its first line\n%s", v.path, first)
	}
	return rest, nil
}
