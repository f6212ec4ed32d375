package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/setup/config"

	"github.com/matrix-org/dendrite/todevicemodule/host"
)

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	contents := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		contents[entry.Name()] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return contents
}

func TestPrepareSiteWritesWhatTheServerStartsWith(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	site, err := prepareSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(filepath.Join(dir, "dendrite.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err = verify(cfg); err != nil {
		t.Errorf("the host finds faults in the configuration: %v", err)
	}
	if cfg.ClientAPI.RegistrationSharedSecret != site.secret || len(site.secret) < 32 {
		t.Error("the secret is not the configuration's")
	}
	for _, database := range []config.DataSource{cfg.SyncAPI.Database.ConnectionString, cfg.UserAPI.AccountDatabase.ConnectionString} {
		if !database.IsSQLite() || !strings.Contains(string(database), dir) {
			t.Errorf("the database %s is not in %s", database, dir)
		}
	}
	section, err := host.ReadConfig(filepath.Join(dir, "dendrite.yaml"))
	if err != nil || !section.Enabled {
		t.Errorf("the module's section is %+v, %v", section, err)
	}
	for _, name := range []string{"secret", "matrix_key.pem", "dendrite.yaml"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestPrepareSiteLeavesAloneWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	first, err := prepareSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	second, err := prepareSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	if *first != *second || !reflect.DeepEqual(files(t, dir), before) {
		t.Error("preparing the directory again changed it")
	}

	if err = os.Remove(filepath.Join(dir, "matrix_key.pem")); err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(dir, "dendrite.yaml"), []byte("# mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = prepareSite(dir); err != nil {
		t.Fatal(err)
	}
	after := files(t, dir)
	if after["dendrite.yaml"] != "# mine\n" || after["secret"] != before["secret"] || after["matrix_key.pem"] == "" {
		t.Errorf("what was missing was not all that was written: %v", after)
	}
}

func TestPrepareSiteWhereItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := prepareSite(filepath.Join(file, "below")); err == nil {
		t.Error("a directory below a file was prepared")
	}
}

func TestQuickstartRefusesWhatItDoesNotKnow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	for _, args := range [][]string{{"-dir", dir, "-unknown"}, {"-dir", dir, "extra"}} {
		if err := quickstart(args); err == nil {
			t.Errorf("%v were taken", args)
		}
	}
	if err := quickstart([]string{"-h"}); err != nil {
		t.Errorf("asking for help gives %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory was made all the same")
	}
}
