package e2e

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// envRows names the environment variable with the number of messages that TestMemoryOfMoves moves.
	envRows = "TODEVICE_E2E_ROWS"
	// What a move may take: of a million messages in time, and of any number in memory beside what a server takes without.
	longestMove   = 5 * time.Minute
	largestGrowth = 256 << 10 // KiB
)

// memoryPeak returns the most memory that a process has had in use, in KiB, or 0 once it has ended.
func memoryPeak(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	match := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		return 0
	}
	kib, _ := strconv.Atoi(string(match[1]))
	return kib
}

// A move of very many messages is done in minutes, and its memory does not grow with them.
func TestMemoryOfMoves(t *testing.T) {
	rows, devices := 50_000, 50
	if given := os.Getenv(envRows); given != "" {
		var err error
		if rows, err = strconv.Atoi(given); err != nil || rows < 1 {
			t.Fatalf("%s=%s is no number of messages", envRows, given)
		}
		devices = 1000
	}
	onEach(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Unmodified: true})
		clients := make([]*Client, 0, devices)
		for len(clients) < devices { // ten devices for each user
			first := Register(t, s, "receiver")
			clients = append(clients, first)
			for i := range 9 {
				clients = append(clients, first.Login(t, s, id.DeviceID(fmt.Sprint("DEVICE", i))))
			}
		}
		s.SwitchTo(t, Options{}) // makes the tables
		s.SwitchTo(t, Options{})
		empty := memoryPeak(s.process.Process.Pid)
		emptyExport := peakOfExport(t, s)
		s.SwitchTo(t, Options{Unmodified: true})
		s.stopAnd(t, Options{})
		fillHostQueue(t, s, rows, clients)

		started := time.Now()
		if err := s.launch(); err != nil {
			t.Fatal(err)
		}
		within(t, longestMove, "the import is done", func() (bool, any) {
			select {
			case <-s.exited:
				t.Fatalf("the server ended\n%s", s.logTail(0))
				return false, nil
			default:
				return s.answers(), time.Since(started)
			}
		})
		imported, full := time.Since(started), memoryPeak(s.process.Process.Pid)
		if empty == 0 || full == 0 {
			t.Fatal("nothing tells how much memory the server takes: this test needs /proc")
		}
		grown := full - empty
		t.Logf("%d messages imported by a server that starts in %s, with %d MiB more memory than an empty one's %d MiB",
			rows, imported.Round(time.Millisecond), grown>>10, empty>>10)
		if grown > largestGrowth {
			t.Errorf("the import took %d KiB more than an empty server's %d KiB", grown, empty)
		}
		wantWaiting(t, s, "todevice_messages", rows)
		wantWaiting(t, s, "syncapi_send_to_device", 0)
		got := clients[len(clients)-1].Sync(t, Sync{}).Events()
		if want := min(100, rows/devices); len(got) != want {
			t.Errorf("a device got %d messages, want %d", len(got), want)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}

		started = time.Now()
		peak := peakOfExport(t, s)
		exported := time.Since(started)
		t.Logf("%d messages exported in %s, with %d MiB more memory than the export of nothing's %d MiB",
			rows, exported.Round(time.Millisecond), (peak-emptyExport)>>10, emptyExport>>10)
		if exported > longestMove || peak-emptyExport > largestGrowth {
			t.Errorf("the export took %s and %d KiB more than the export of nothing", exported, peak-emptyExport)
		}
		wantWaiting(t, s, "todevice_messages", 0)
		wantWaiting(t, s, "syncapi_send_to_device", rows)
	})
}

// peakOfExport stops the server, unless it is stopped, runs an export and returns its peak of memory.
func peakOfExport(t *testing.T, s *Server) int {
	t.Helper()
	if s.running() {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := s.exportCommand()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for peak := 0; ; {
		peak = max(peak, memoryPeak(cmd.Process.Pid))
		select {
		case err := <-ended:
			if err != nil || peak == 0 {
				t.Fatalf("export: error %v, a peak of %d KiB\n%s", err, peak, out.String())
			}
			return peak
		case <-time.After(time.Millisecond):
		}
	}
}
