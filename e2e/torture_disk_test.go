package e2e

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// disk is a small file system of a test's own, which can be filled without harm to anybody else.
type disk struct{ dir string }

// newDisk mounts one in memory, which takes the rights of root.
func newDisk(t testing.TB, size string) *disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "todevice-disk-") // PostgreSQL's user can't enter the directories of t
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { orFail(t, os.RemoveAll(dir)) })
	if err = syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0755"); err != nil {
		t.Fatalf("mounting a file system of %s to fill: %v. Run this as root, in a container with CAP_SYS_ADMIN, say", size, err)
	}
	t.Cleanup(func() { orFail(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	if err = os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &disk{dir}
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no byte free.
func (d *disk) fill(t testing.TB) {
	t.Helper()
	f, err := os.Create(d.filler())
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck
	for _, size := range []int{1 << 20, 4 << 10} {
		zeros := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(zeros)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

func (d *disk) empty() error { return os.Remove(d.filler()) }

// full is the disk of a database without a free byte. Where the database has ended for it, again starts it.
func full(name, part string, d *disk, again func() error) *fault {
	return &fault{
		name: name, part: part,
		inject: func(t testing.TB, _ *rand.Rand) { d.fill(t) },
		heal: func(t testing.TB) {
			orFail(t, d.empty())
			orFail(t, again())
		},
	}
}
