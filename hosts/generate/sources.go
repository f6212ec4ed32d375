package main

import (
	"errors"
	"fmt"
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sources returns the files in some directories of root, and below them, that the go command reads, in order: code, what it embeds, and testdata. What else
// lies there, profiles and binaries say, is nobody's. Symbolic links are returned as files.
func sources(root string, dirs []string) (names []string, err error) {
	for _, dir := range dirs {
		err = filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			switch {
			case name != "." && strings.ContainsAny(entry.Name()[:1], "._"), filepath.Base(filepath.Dir(name)) == "testdata" && entry.Name() == "rapid":
				if entry.IsDir() {
					return fs.SkipDir
				}
			case entry.IsDir() && !inTestdata(name):
				embedded, err := embeds(path)
				for _, file := range embedded {
					names = append(names, filepath.Join(name, file))
				}
				return err
			case !entry.IsDir() && (isCode(name) || inTestdata(name)), entry.Type()&fs.ModeSymlink != 0:
				names = append(names, name)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// isCode returns whether the file is compiled.
func isCode(name string) bool { return filepath.Ext(name) == ".go" && !inTestdata(name) }

func inTestdata(name string) bool {
	return slices.Contains(strings.Split(filepath.ToSlash(name), "/"), "testdata")
}

// embeds returns the files that the code in a directory embeds, whatever its build tags are.
func embeds(dir string) (names []string, err error) {
	context := build.Default
	context.UseAllFiles = true
	pkg, _ := context.ImportDir(dir, 0) // it has what can be parsed: what can't is for translate to refuse, or is written again
	below := os.DirFS(dir)
	for _, pattern := range slices.Concat(pkg.EmbedPatterns, pkg.TestEmbedPatterns, pkg.XTestEmbedPatterns) {
		found, err := fs.Glob(below, strings.TrimPrefix(pattern, "all:"))
		if err != nil {
			return nil, fmt.Errorf("what %s embeds as %s: %w", dir, pattern, err)
		}
		for _, top := range found {
			err = fs.WalkDir(below, top, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() {
					names = append(names, path)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}
