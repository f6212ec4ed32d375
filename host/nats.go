package host

import (
	"errors"

	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/nats-io/nats.go"
)

// ErrNATSRestarted says that the connection to a NATS outside of the process was lost.
var ErrNATSRestarted = errors.New("the connection to NATS was lost, which Dendrite's own consumers do not outlive: the server has to be started again")

// WatchNATS returns a channel that has ErrNATSRestarted in it once the connection to a NATS outside of the process was lost and
// is there again. From then on Dendrite's consumers may hang in an acknowledgement that has no deadline, or have
// ended (setup/jetstream/helpers.go), among them the one that carries what the module sends to other servers. The
// process must end then, and be started again. It is to be called before any other part of the host
// connects. Nothing is ever in the channel unless the module is enabled and NATS is outside of the process.
func (d *Dendrite) WatchNATS(processContext *process.ProcessContext, natsInstance *jetstream.NATSInstance) <-chan error {
	restarted := make(chan error, 1)
	if d.module == nil || len(d.config.Global.JetStream.Addresses) == 0 {
		return restarted
	}
	_, conn := natsInstance.Prepare(processContext, &d.config.Global.JetStream)
	tell := func(*nats.Conn) {
		select {
		case restarted <- ErrNATSRestarted:
		default:
		}
	}
	// v0.13.8 gives up after 60 attempts, and its consumers end the process half way through whatever they do. v0.15.2 tries for ever, but
	// every ten seconds alone.
	conn.Opts.MaxReconnect = -1
	conn.Opts.ReconnectWait = nats.DefaultReconnectWait
	conn.SetClosedHandler(tell)
	conn.SetReconnectHandler(tell) // takes the connection's lock, behind which what is new is seen
	return restarted
}
