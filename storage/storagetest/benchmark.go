package storagetest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Benchmark measures the calls that bound the module's throughput.
func Benchmark(b *testing.B, open Opener) {
	store := open(b)
	if err := store.Migrate(b.Context()); err != nil {
		b.Fatal(err)
	}
	last, err := store.Claim(b.Context(), "benchmark", 0)
	if err != nil {
		b.Fatal(err)
	}
	content := []byte(`{"ciphertext":"` + strings.Repeat("Ab+/", 250) + `"}`) // about an encrypted room key
	for _, copies := range []int{1, 1000} {
		b.Run(fmt.Sprintf("Commit/copies=%d", copies), func(b *testing.B) {
			d := storage.Delivery{Sender: sender, Type: eventType}
			for i := range copies {
				device := types.Device{UserID: fmt.Sprintf("@user%d:example.org", i/3), DeviceID: fmt.Sprint("DEVICE", i%3)}
				d.Copies = append(d.Copies, storage.Copy{Device: device, Content: content})
			}
			for b.Loop() {
				d.Position = last + 1
				batch := storage.Batch{Writer: "benchmark", Previous: last, Last: last + types.Position(copies), Deliveries: []storage.Delivery{d}}
				if err := store.Commit(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				last = batch.Last
			}
			b.ReportMetric(float64(b.N*copies)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	device := types.Device{UserID: "@user0:example.org", DeviceID: "DEVICE0"}
	b.Run("Messages/limit=100", func(b *testing.B) {
		for b.Loop() {
			if _, err := store.Messages(b.Context(), device, 0, last, 100, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Acknowledge/idle", func(b *testing.B) {
		idle := []storage.Acknowledgement{{Device: device}}
		for b.Loop() {
			if _, err := store.Acknowledge(b.Context(), idle, 1000); err != nil {
				b.Fatal(err)
			}
		}
	})
}
