package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// errStale is that a host's directories are not what the first host's make of them.
var errStale = errors.New("run go generate ./hosts/generate")

// compare returns errStale if the copied directories in dir are not those wanted.
func compare(dir string, want map[string][]byte) error {
	there, err := names(dir)
	if err != nil {
		return err
	}
	for name, content := range want {
		switch have, err := os.ReadFile(filepath.Join(dir, name)); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s is missing: %w", filepath.Join(dir, name), errStale)
		case err != nil:
			return err
		case !bytes.Equal(have, content):
			return fmt.Errorf("%s is out of date: %w", filepath.Join(dir, name), errStale)
		}
	}
	for _, name := range there {
		if want[name] == nil {
			return fmt.Errorf("%s is not generated any more: %w", filepath.Join(dir, name), errStale)
		}
	}
	return nil
}

// write makes the copied directories in dir those wanted.
func write(dir string, want map[string][]byte) error {
	there, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range there {
		if want[name] == nil {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	for name, content := range want {
		path := filepath.Join(dir, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644))
	}
	return err
}

// names returns the files in the copied directories of dir, in order.
func names(dir string) (there []string, err error) {
	for _, below := range copied {
		err := filepath.WalkDir(filepath.Join(dir, below), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			name, err := filepath.Rel(dir, path)
			there = append(there, name)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	slices.Sort(there)
	return there, nil
}
