package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// errStale is that a host's directory is not what the first host's make of it.
var errStale = errors.New("run go generate ./hosts/generate")

// errByHand is that a host's directory has a file that nobody would write again.
var errByHand = errors.New("it was written by hand: hosts share what lies outside of this directory, and have nothing else of their own")

// compare returns errStale if the files in dir are not those wanted, and errByHand for one that is in none of the copied directories.
func compare(dir string, want map[string][]byte) error {
	there, err := sources(dir, []string{"."})
	if err != nil {
		return err
	}
	for name, content := range want {
		if !slices.Contains(there, name) {
			return fmt.Errorf("%s is missing: %w", filepath.Join(dir, name), errStale)
		}
		if same, err := has(filepath.Join(dir, name), content); !same {
			return errors.Join(err, fmt.Errorf("%s is out of date: %w", filepath.Join(dir, name), errStale))
		}
	}
	for _, name := range there {
		if want[name] == nil {
			return fmt.Errorf("%s is not generated: %w", filepath.Join(dir, name), errUnwanted(name))
		}
	}
	return nil
}

// has returns whether there is a file at path, and no link to one, with the content.
func has(path string, content []byte) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, content), err
}

func errUnwanted(name string) error {
	top, _, _ := strings.Cut(filepath.ToSlash(name), "/")
	if slices.Contains(copied, top) {
		return errStale
	}
	return errByHand
}

// write makes the files in dir those wanted. It changes nothing and returns errByHand if there is one in none of the copied directories.
func write(dir string, want map[string][]byte) error {
	there, err := sources(dir, []string{"."})
	if err != nil {
		return err
	}
	var unwanted []string
	for _, name := range there {
		if want[name] != nil {
			continue
		}
		if err = errUnwanted(name); errors.Is(err, errByHand) {
			return fmt.Errorf("%s is not generated: %w", filepath.Join(dir, name), err)
		}
		unwanted = append(unwanted, name)
	}
	err = nil
	for _, name := range unwanted {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	for name, content := range want {
		err = errors.Join(err, writeFile(filepath.Join(dir, name), content))
	}
	return err
}

// writeFile writes a file unless it is there. It does not follow a link, which may lead to the first host's file.
func writeFile(path string, content []byte) error {
	switch same, err := has(path, content); {
	case same:
		return nil
	case err == nil:
		if err = os.Remove(path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
