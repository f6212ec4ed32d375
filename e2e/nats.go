package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// envNATS names the environment variable with the path of a nats-server to use instead of building one.
const envNATS = "TODEVICE_E2E_NATS_BINARY"

// natsServer returns the path of a nats-server. It is newer than the one that Dendrite embeds, as an operator's own may be.
var natsServer = sync.OnceValues(func() (string, error) {
	if given := os.Getenv(envNATS); given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(workDir, "nats-server")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building nats-server: %w\n%s", err, out)
	}
	return path, nil
})

// What the host calls its stream of send-to-device messages, and the consumer of it that delivers them.
const (
	natsStream   = "DendriteOutputSendToDeviceEvent"
	natsConsumer = "DendriteSyncAPISendToDeviceConsumerPull"
)

// NATS is a nats-server process together with what it has on disk.
type NATS struct {
	URL string

	dir, address string
	process      *exec.Cmd
	exited       chan struct{}
}

// StartNATS starts a nats-server of the test's own, and ends it with the test.
func StartNATS(t testing.TB) *NATS {
	t.Helper()
	return startNATS(t, t.TempDir())
}

// startNATS starts one on a directory. The directory of a server's streams will do while that server
// does not run.
func startNATS(t testing.TB, dir string) *NATS {
	t.Helper()
	address, err := remote.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	n := &NATS{URL: "nats://" + address, dir: dir, address: address}
	n.Start(t)
	t.Cleanup(func() { n.end(t, syscall.SIGKILL) })
	return n
}

// Start starts the process and returns when it answers.
func (n *NATS) Start(t testing.TB) {
	t.Helper()
	path, err := natsServer()
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(n.address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-jetstream", "-store_dir", n.dir, "-addr", host, "-port", port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	n.process, n.exited = cmd, exited
	eventually(t, "nats-server answers", func() (bool, any) {
		conn, err := nats.Connect(n.URL)
		if err != nil {
			return false, err
		}
		defer conn.Close()
		js, err := conn.JetStream()
		if err == nil {
			_, err = js.AccountInfo()
		}
		return err == nil, err
	})
}

// Kill ends the process at once, as a crash would.
func (n *NATS) Kill(t testing.TB) { t.Helper(); n.end(t, syscall.SIGKILL) }

// Stop ends the process as an operator would.
func (n *NATS) Stop(t testing.TB) { t.Helper(); n.end(t, syscall.SIGTERM) }

func (n *NATS) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := n.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case <-n.exited:
	case <-time.After(stopDeadline):
		t.Errorf("nats-server did not end within %s of %s", stopDeadline, signal)
	}
}

// connect returns a connection that waits for nats-server where it is away.
func (n *NATS) connect(t testing.TB) nats.JetStreamContext {
	t.Helper()
	conn, err := nats.Connect(n.URL, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := conn.JetStream(nats.MaxWait(2 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// publish puts a message into the host's stream, as the host does with what a relay hands over. After an error
// the stream may have it or not.
func publish(js nats.JetStreamContext, sender string, to *Client, content any) error {
	data, err := json.Marshal(object{
		"user_id": to.UserID, "device_id": to.DeviceID, "sender": sender, "type": "m.test", "content": content,
	})
	if err != nil {
		return err
	}
	msg := nats.NewMsg(natsStream)
	msg.Header.Set("sender", sender)
	msg.Header.Set("user_id", to.UserID.String())
	msg.Data = data
	_, err = js.PublishMsg(msg)
	return err
}

// publishNumbered puts messages with the numbers from first up to end into the stream.
func publishNumbered(t testing.TB, js nats.JetStreamContext, to *Client, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		if err := publish(js, "@relayed:remote.example", to, object{"n": n}); err != nil {
			t.Fatal(err)
		}
	}
}

// wantDrained waits until the server is done with all that is in its stream. Acknowledgements that were lost
// make NATS deliver again, after 30 seconds.
func wantDrained(t testing.TB, js nats.JetStreamContext) {
	t.Helper()
	within(t, 2*time.Minute, "the stream is drained", func() (bool, any) {
		info, err := js.ConsumerInfo(natsStream, natsConsumer)
		if err != nil {
			return false, err
		}
		stream, err := js.StreamInfo(natsStream)
		if err != nil {
			return false, err
		}
		return info.NumPending == 0 && info.NumAckPending == 0, fmt.Sprintf("%+v, of the stream %+v", info, stream.State)
	})
}
