// Command generate writes the host package and the command for further hosts from those for matrix-org/dendrite: the same files
// under the import paths of that host, or variants of them. Nothing in them is edited by hand. With -check it writes nothing, and fails if a file is
// not what it would write.
package main

import (
	"flag"
	"fmt"
	"os"
)

//go:generate go run . -root ../..

func main() {
	root := flag.String("root", ".", "the directory of the module")
	check := flag.Bool("check", false, "write nothing, and fail if anything would change")
	flag.Parse()
	if err := run(*root, *check); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	for _, h := range hosts {
		want, err := h.files(root)
		if err != nil {
			return err
		}
		dir := h.dir(root)
		if check {
			err = compare(dir, want)
		} else {
			err = write(dir, want)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
