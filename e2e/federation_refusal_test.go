package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// poison marks a content that a remote never takes.
const poison = "org.example.poison"

func refusePoison(status int, errcode string) func(*Transaction) Reply {
	return func(x *Transaction) Reply {
		for _, edu := range x.EDUs {
			if bytes.Contains(edu.Raw, []byte(poison)) {
				return refuse(status, errcode)
			}
		}
		return accept()
	}
}

// One EDU that the remote refuses holds up neither what is behind it, nor room events, nor other EDUs;
// and the host does not think that the remote is down.
func TestRefusedEDU(t *testing.T) {
	for name, refusal := range map[string]struct {
		status  int
		errcode string
	}{
		"bad request": {http.StatusBadRequest, "M_BAD_JSON"},
		"too large":   {http.StatusRequestEntityTooLarge, "M_TOO_LARGE"},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				const promised = 10 * time.Second
				here := SharedFederated(t, b)
				remote := NewFakeRemote(t, here)
				remote.Behave(refusePoison(refusal.status, refusal.errcode))
				alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
				room := joinRoom(t, alice)
				remote.Join(t, here, room, remote.User("bob"))

				start := time.Now()
				alice.Send(t, "m.test", To(object{poison: true, "n": -1}, device))
				for n := range 99 {
					alice.Send(t, "m.test", To(object{"n": n}, device))
					if n%20 == 0 {
						sendRoomMessage(t, alice, room, fmt.Sprint(n))
					}
				}
				if _, err := alice.UserTyping(t.Context(), room, true, time.Minute); err != nil {
					t.Fatal(err)
				}
				remote.WantNumbers(t, 99, time.Until(start.Add(promised)))
				remote.WantTexts(t, time.Until(start.Add(promised)), "0", "20", "40", "60", "80")
				within(t, time.Until(start.Add(promised)), "the typing arrives", func() (bool, any) {
					_, edus := remote.Others()
					return slices.ContainsFunc(edus, func(edu EDU) bool { return edu.Type == "m.typing" }), len(edus)
				})

				// Nobody backs off: one that comes later arrives at once.
				const atOnce = 2 * time.Second
				alice.Send(t, "m.test", To(object{"n": 99}, device))
				remote.WantNumbers(t, 100, atOnce)
				sendRoomMessage(t, alice, room, "later")
				remote.WantTexts(t, atOnce, "0", "20", "40", "60", "80", "later")
			})
		})
	}
}

// What was refused is not thrown away: once the remote takes it, it arrives.
func TestRefusedEDUIsSentAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, here)
		remote.Behave(refusePoison(http.StatusBadRequest, "M_BAD_JSON"))
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		alice.Send(t, "m.test", To(object{poison: true, "n": 1}, device))
		alice.Send(t, "m.test", To(object{"n": 0}, device))
		remote.WantNumbers(t, 1, deadline)
		db := here.OpenDatabase(t)
		eventually(t, "the refused EDU is put aside", func() (bool, any) {
			var n int
			err := db.QueryRow("SELECT COUNT(*) FROM todevice_refused WHERE destination = $1", remote.Name).Scan(&n)
			return err == nil && n == 1, []any{n, err}
		})
		here.Restart(t) // it is still known
		remote.Behave(func(*Transaction) Reply { return accept() })
		remote.WantNumbers(t, 2, 2*time.Minute)
		wantNothingKept(t, here, remote.Name)
	})
}

// Several refused EDUs among good ones, in a line of more than one transaction.
func TestManyRefusedEDUs(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		refuseIt := refusePoison(http.StatusBadRequest, "M_BAD_JSON")
		release := make(chan struct{})
		remote.Script(acceptLate(release)) // so that the others are there when the next one starts
		remote.Behave(refuseIt)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		sendNumbered(t, alice, device, 0, 1)
		remote.AwaitTransactions(t, 1)
		for n := 1; n < 200; n++ {
			if n%25 == 0 {
				alice.Send(t, "m.test", To(object{poison: true, "n": -n}, device))
			}
			alice.Send(t, "m.test", To(object{"n": n}, device))
		}
		close(release)
		remote.WantNumbers(t, 200, deadline)
		found := len(remote.Transactions())
		t.Logf("200 messages and 7 refused ones took %d transactions", found)

		// From then on those refused come alone, if they come: they cost no other message a second attempt.
		for n := range 20 {
			sendNumbered(t, alice, device, 200+n, 201+n)
			remote.WantNumbers(t, 201+n, deadline)
		}
		for _, x := range remote.Transactions()[found:] {
			if refuseIt(x).Status != http.StatusOK && len(x.EDUs) > 1 {
				t.Errorf("transaction %s has %d EDUs, one of which was refused before", x.ID, len(x.EDUs))
			}
		}
	})
}

// A remote that refuses whatever comes, as a proxy does while the server behind it is set up, refuses none
// in particular: when it takes them they arrive, in order.
func TestEverythingRefused(t *testing.T) {
	for name, reply := range map[string]Reply{
		"not found by a proxy": refuseByProxy(http.StatusNotFound),
		"forbidden":            refuse(http.StatusForbidden, "M_FORBIDDEN"),
		"unauthorised":         refuse(http.StatusUnauthorized, "M_UNAUTHORIZED"), //nolint:misspell // as the specification has it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b Backend) {
				here := SharedFederated(t, b)
				remote := NewFakeRemote(t, here)
				remote.Behave(func(*Transaction) Reply { return reply })
				alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
				sendNumbered(t, alice, device, 0, 20)
				remote.AwaitTransactions(t, 4)
				sendNumbered(t, alice, device, 20, 30)
				remote.Behave(func(*Transaction) Reply { return accept() })
				remote.WantNumbers(t, 30, silentRecovery)
				wantNothingKept(t, here, remote.Name)
			})
		})
	}
}

// A proxy takes only so much at once: what is refused for its size is sent in smaller pieces.
func TestLargeTransactionsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		release := make(chan struct{})
		remote.Script(acceptLate(release))
		remote.Behave(func(x *Transaction) Reply {
			if len(x.Body) > 300<<10 {
				return refuseByProxy(http.StatusRequestEntityTooLarge)
			}
			return accept()
		})
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		for n := range 40 {
			alice.Send(t, "m.test", To(object{"n": n, "a": strings.Repeat("x", 60<<10)}, device))
		}
		close(release)
		remote.WantNumbers(t, 40, deadline)
		wantNothingKept(t, here, remote.Name)
	})
}

// A room event that the remote refuses, with all that it comes with, is the host's own affair, and the host
// waits longer after each attempt: messages to devices arrive without it.
func TestRefusedRoomEvent(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true}) // the host never gets rid of that event
		remote := NewFakeRemote(t, here)
		remote.Behave(func(x *Transaction) Reply {
			for _, pdu := range x.PDUs {
				if textOf(pdu) == poison {
					return refuse(http.StatusBadRequest, "M_BAD_JSON")
				}
			}
			return accept()
		})
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		room := joinRoom(t, alice)
		remote.Join(t, here, room, remote.User("bob"))
		sendRoomMessage(t, alice, room, poison)
		for n := range 3 {
			sendNumbered(t, alice, device, n, n+1)
			remote.WantNumbers(t, n+1, silentRecovery)
		}
		wantNothingKept(t, here, remote.Name)
	})
}

func sendRoomMessage(t *testing.T, c *Client, room id.RoomID, text string) {
	t.Helper()
	if _, err := c.SendText(t.Context(), room, text); err != nil {
		t.Fatal(err)
	}
}
