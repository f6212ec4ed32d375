package hosttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// syncPromises are about /sync, and the to_device position of its tokens.
var syncPromises = []Promise{
	{
		Name:  "no-since-deletes-nothing",
		Text:  "A /sync without since hands out what waits for the device and acknowledges nothing (I6).",
		check: noSinceDeletesNothing,
	},
	{
		Name:  "since-acknowledges",
		Text:  "A /sync whose since covers a message acknowledges it by Module.AcknowledgeSync, for its own device alone: it does not come again (I6).",
		check: sinceAcknowledges,
	},
	{
		Name:      "queues-come-in-batches",
		Text:      "A response has what one Module.ReadForSync returns, and its position in next_batch: while more wait the next /sync returns them at once, the same since gives the same again, and contents are as they were sent (I5).",
		configure: smallBatches,
		check:     queuesComeInBatches,
	},
	{
		Name:      "positions-are-the-modules",
		Text:      "The to_device position that comes back in a since token is the one that the module gave for that response, and no other.",
		configure: smallBatches,
		check:     positionsAreTheModules,
	},
	{
		Name:  "waiting-devices-are-woken",
		Text:  "WakeDevices ends the waiting /sync requests of the devices, and of no others.",
		check: waitingDevicesAreWoken,
	},
	{
		Name:      "waking-does-not-block",
		Text:      "WakeDevices does not wait for a device that it wakes: others get what comes after (I12).",
		configure: largeMessages,
		check:     wakingDoesNotBlock,
	},
	{
		Name:  "wake-ups-come-in-order",
		Text:  "The module calls WakeDevices one at a time, in the order of the positions, once every message up to the position can be read (I4).",
		check: wakeUpsComeInOrder,
	},
	{
		Name:  "each-message-comes-once",
		Text:  "A device that follows next_batch sees each message once, and those of one sender in order, while others send (I5).",
		check: eachMessageComesOnce,
	},
	{
		Name:  "tokens-ahead-hide-nothing",
		Text:  "A since token ahead of the store goes through Module.SinceForSync: it neither hides nor deletes a message (I6).",
		check: tokensAheadHideNothing,
	},
	{
		Name:      "failed-reads-are-5xx",
		Text:      "A /sync whose Module.ReadForSync failed is answered 5xx, be it at once or after it was woken, and its since stays good (I6).",
		configure: largeMessages,
		check:     failedReadsAre5xx,
	},
	{
		Name:  "handed-over-is-told",
		Text:  "Module.HandedOver is told of the messages of each response, and of none that failed.",
		check: handedOverIsTold,
	},
}

const batch = 3

func smallBatches(config *todevicemodule.Config) { config.SyncLimit = batch }

// large is more than the module keeps of one queue in memory, so that it reads its messages from the store.
const large = 1<<20 + 1<<18

func largeMessages(config *todevicemodule.Config) { config.MaxMessageBytes = 2 * large }

// largeNumbered is a numbered content that is large.
func largeNumbered(n int) object {
	content := numbered(n)
	content["large"] = strings.Repeat("x", large)
	return content
}

func noSinceDeletesNothing(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const sent = 5
	if err = alice.sendNumbered(ctx, bob, 0, sent); err != nil {
		return err
	}
	for range 3 {
		events, err := bob.waiting(ctx)
		if err != nil {
			return err
		}
		if err = wantNumbers("a /sync without since", events, 0, sent); err != nil {
			return err
		}
	}
	if err = tr.restart(ctx); err != nil { // by which everything that was acknowledged is deleted
		return err
	}
	return bob.wantWaiting(ctx, "after several /sync without since, and a restart", sent)
}

func sinceAcknowledges(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	second, err := bob.login(ctx, "SECOND")
	if err != nil {
		return err
	}
	const sent = 3
	for n := range sent {
		if err = alice.send(ctx, to(numbered(n), bob, second)); err != nil {
			return err
		}
	}
	_, since, err := bob.receive(ctx, "", sent)
	if err != nil {
		return err
	}
	res, err := bob.sync(ctx, since)
	if err != nil {
		return err
	}
	if len(res.events()) > 0 {
		return fmt.Errorf("after the token of the messages: want none of them, got %v", numbersOf(res.events()))
	}
	if err = bob.wantNothing(ctx, "without since, after the messages were acknowledged"); err != nil {
		return err
	}
	err = tr.await(ctx, "what was acknowledged is deleted", func() (bool, any, error) {
		left, err := tr.queueOf(ctx, bob.Device)
		return len(left) == 0, len(left), err
	})
	if err != nil {
		return err
	}
	return second.wantWaiting(ctx, "another device of the same user", sent)
}

// queueOf returns what the store has for a device.
func (tr *trial) queueOf(ctx context.Context, device types.Device) ([]types.Message, error) {
	const most = 1000
	return tr.realStore().Messages(ctx, device, 0, math.MaxInt64, most, nil)
}

// storedFor returns what the store has for a device, which is to be so many messages.
func (tr *trial) storedFor(ctx context.Context, device types.Device, n int) ([]types.Message, error) {
	queue, err := tr.queueOf(ctx, device)
	if err == nil && len(queue) != n {
		err = fmt.Errorf("after %d messages were sent to %s %s: the store has %d", n, device.UserID, device.DeviceID, len(queue))
	}
	return queue, err
}

func queuesComeInBatches(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const sent = 3*batch + 1
	if err = alice.sendNumbered(ctx, bob, 0, sent); err != nil {
		return err
	}
	for n, since := 0, ""; n < sent; {
		res, err := bob.next(ctx, since)
		if err != nil {
			return err
		}
		if err = wantNumbers("a batch", res.events(), n, min(n+batch, sent)); err != nil {
			return err
		}
		again, err := bob.next(ctx, since)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(again.events(), res.events()) {
			return fmt.Errorf("the same since again: want %v, got %v", numbersOf(res.events()), numbersOf(again.events()))
		}
		n, since = n+len(res.events()), res.NextBatch
	}
	return contentsArriveAsSent(ctx, tr)
}

// contentsArriveAsSent has a content in it that most who decode it and encode it again would change.
func contentsArriveAsSent(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const sent = `{"n":0,"large":9007199254740993,"fraction":1.10,"none":null,"empty":[],"<é>&":{"n":[{}]}}`
	body := []byte(`{"messages":{"` + bob.UserID + `":{"` + bob.DeviceID + `":` + sent + `}}}`)
	if err = alice.must(ctx, http.MethodPut, putPath(messageType, tr.name("txn")), body, nil); err != nil {
		return err
	}
	events, _, err := bob.receive(ctx, "", 1)
	if err != nil {
		return err
	}
	want, err := exactly([]byte(sent))
	if err != nil {
		return err
	}
	got, err := exactly(events[0].Content)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("the content %s arrives as %s", sent, events[0].Content)
	}
	return nil
}

// exactly decodes JSON with its numbers as they are written.
func exactly(text []byte) (value any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	err = decoder.Decode(&value)
	return value, err
}

func eachMessageComesOnce(ctx context.Context, tr *trial) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	const senders, each = 4, 12
	alices := make(map[string]*client, senders)
	for range senders {
		alice, err := tr.register(ctx, "alice", "FIRST")
		if err != nil {
			return err
		}
		alices[alice.UserID] = alice
	}
	sent := make(chan error, senders)
	for _, alice := range alices {
		go func() { sent <- alice.sendNumbered(ctx, bob, 0, each) }()
	}
	got := make(map[string][]event)
	for n, since := 0, ""; n < senders*each; {
		res, err := bob.next(ctx, since)
		if err != nil {
			return fmt.Errorf("after %d of %d messages: %w", n, senders*each, err)
		}
		for _, e := range res.events() {
			got[e.Sender] = append(got[e.Sender], e)
		}
		n, since = n+len(res.events()), res.NextBatch
	}
	for range senders {
		if err = <-sent; err != nil {
			return err
		}
	}
	for userID := range alices {
		if err = wantNumbers("of one of the senders", got[userID], 0, each); err != nil {
			return err
		}
	}
	return nil
}
