package main

import (
	"bufio"
	"database/sql"
	"os"
	"os/exec"
	"runtime"
	"strings"

	_ "github.com/lib/pq" // asks PostgreSQL for its version

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// machine says where the figures are from. What can't be found out is empty.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     string `json:"memory"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	PostgreSQL string `json:"postgresql"`
	Host       string `json:"host"`
	Dendrite   string `json:"dendrite"`
	Commit     string `json:"commit"`
}

func thisMachine() machine {
	m := machine{
		CPU: procLine("/proc/cpuinfo", "model name"), Memory: procLine("/proc/meminfo", "MemTotal"), Cores: runtime.NumCPU(),
		Kernel: procLine("/proc/sys/kernel/osrelease", ""), Go: runtime.Version(), PostgreSQL: postgresVersion(),
	}
	if dir, err := e2e.ModuleDir(); err == nil {
		m.Commit = output(dir, "git", "describe", "--always", "--dirty", "--abbrev=40")
	}
	if host, err := e2e.HostUnderTest(); err == nil {
		m.Host = string(host)
		m.Dendrite, _ = host.Version()
	}
	return m
}

// procLine returns what follows a key in a file of /proc, or the first line if there is no key.
func procLine(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key == "" {
			return lines.Text()
		}
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func postgresVersion() (version string) {
	db, err := sql.Open("postgres", os.Getenv(pgtest.EnvURL))
	if err != nil {
		return ""
	}
	defer db.Close() //nolint:errcheck
	if db.QueryRow("SHOW server_version").Scan(&version) != nil {
		return ""
	}
	return version
}

func output(dir, name string, args ...string) string {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
