package main

import (
	"bufio"
	"fmt"
	"os"
)

// memory is what a process has, in MiB.
type memory struct{ resident, peak float64 }

func readMemory(pid int) (m memory, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	defer f.Close() //nolint:errcheck
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var kib float64
		if n, _ := fmt.Sscanf(lines.Text(), "VmRSS: %f kB", &kib); n == 1 {
			m.resident = kib / 1024
		}
		if n, _ := fmt.Sscanf(lines.Text(), "VmHWM: %f kB", &kib); n == 1 {
			m.peak = kib / 1024
		}
	}
	if err = lines.Err(); err == nil && m.resident == 0 {
		err = fmt.Errorf("process %d has no resident memory: it has ended", pid)
	}
	return m, err
}
