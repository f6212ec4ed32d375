package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// profile stores a CPU profile, and what is allocated meanwhile, of those of the servers that are ours, for the time given. It
// returns at once; the function that it returns waits for the files. Without -profile it does nothing.
func (b *bench) profile(ctx context.Context, name string, during time.Duration, servers ...*server) (wait func() error) {
	var fetches sync.WaitGroup
	var mu sync.Mutex
	var all error
	for _, of := range servers {
		for endpoint, suffix := range map[string]string{"profile": "cpu", "allocs": "allocs"} {
			if of.pprof == "" {
				continue
			}
			fetches.Go(func() {
				url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", of.pprof, endpoint, max(1, int(during.Seconds())))
				file := fmt.Sprintf("%s-%s-%s.%s.pprof", of.Backend, name, of.role, suffix)
				err := download(ctx, url, filepath.Join(b.profiles, file))
				mu.Lock()
				defer mu.Unlock()
				all = errors.Join(all, err)
			})
		}
	}
	return func() error { fetches.Wait(); return all }
}

func download(ctx context.Context, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	return errors.Join(err, f.Close())
}
