package writer_test

import (
	"context"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// BenchmarkSubmit has 32 clients send 800-byte messages to one device each, at once.
func BenchmarkSubmit(b *testing.B) {
	for name, database := range map[string]func(testing.TB) testdb.Open{"postgres": testdb.Postgres, "sqlite": testdb.SQLite} {
		b.Run(name, func(b *testing.B) {
			ctx := context.Background()
			store := database(b)(b)
			if err := store.Migrate(ctx); err != nil {
				b.Fatal(err)
			}
			w := writer.New(writer.Options{Store: store, Log: quiet(), Wake: (&fixture{}).wake})
			if err := w.Start(ctx); err != nil {
				b.Fatal(err)
			}
			defer w.Stop(ctx) //nolint:errcheck
			content := []byte(`{"ciphertext":"` + strings.Repeat("x", 800) + `"}`)
			b.SetParallelism(16)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					err := w.Submit(ctx, writer.Submission{Parts: []writer.Part{{
						Sender: "@alice:test", Type: "m.room.encrypted", Copies: []storage.Copy{{Device: bob, Content: content}},
					}}})
					if err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
