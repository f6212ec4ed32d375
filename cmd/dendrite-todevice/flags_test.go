package main

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/setup/config"
)

// hostsFlag finds the flags that the host defines in a file, with their defaults.
var hostsFlag = regexp.MustCompile(`flag\.(?:String|Bool|Int)\("([^"]+)",\s*("[^"]*"|true|false|[0-9]+),`)

func hostsFlags(t *testing.T, file string) map[string]string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Module.Dir}}", reflect.TypeFor[config.Dendrite]().PkgPath()).Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
	if err != nil {
		t.Fatal(err)
	}
	flags := make(map[string]string)
	for _, match := range hostsFlag.FindAllStringSubmatch(string(source), -1) {
		flags[match[1]] = strings.Trim(match[2], `"`)
	}
	if len(flags) == 0 {
		t.Fatalf("%s of the host defines no flags", file)
	}
	return flags
}

func wantFlags(t *testing.T, set *flag.FlagSet, want map[string]string) {
	t.Helper()
	for name, value := range want {
		switch got := set.Lookup(name); {
		case got == nil:
			t.Errorf("the flag -%s is missing", name)
		case got.DefValue != value:
			t.Errorf("the default of -%s is %q, the host's is %q", name, got.DefValue, value)
		}
	}
}

func TestFlagsAreTheHosts(t *testing.T) {
	set := flag.NewFlagSet("", flag.ContinueOnError)
	addServerFlags(set)
	own := hostsFlags(t, "cmd/dendrite/main.go")
	if len(own) < 6 {
		t.Errorf("only %v were found", own)
	}
	wantFlags(t, set, own)
	set.VisitAll(func(f *flag.Flag) {
		if _, ok := own[f.Name]; !ok {
			t.Errorf("the host has no flag -%s", f.Name)
		}
	})
	// These come with the host's packages.
	wantFlags(t, flag.CommandLine, hostsFlags(t, "setup/flags.go"))
	wantFlags(t, flag.CommandLine, hostsFlags(t, "internal/sqlutil/sqlutil.go"))
	for _, name := range []string{"config", "version", "really-enable-open-registration", "skip-db-sanity"} {
		if flag.Lookup(name) == nil {
			t.Errorf("the flag -%s is missing", name)
		}
	}
}

// Of what follows the flags the host takes no notice, such as the value of a flag that takes none.
func TestSubcommandsBehindFlags(t *testing.T) {
	for args, want := range map[string]string{
		"": "", "true": "", "to-devices": "", "to-device export": "to-device", "quickstart": "quickstart", "true to-device": "to-device",
	} {
		if got := misplaced(strings.Fields(args)); got != want {
			t.Errorf("in %q the subcommand is %q, want %q", args, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	parse := func(args ...string) serverFlags {
		set := flag.NewFlagSet("", flag.ContinueOnError)
		flags := addServerFlags(set)
		if err := set.Parse(args); err != nil {
			t.Fatal(err)
		}
		return flags
	}
	http, https, err := parse().addresses()
	if err != nil || http.Address != ":8008" || https.Address != ":8448" {
		t.Errorf("by default the addresses are %+v and %+v, %v", http, https, err)
	}
	http, https, err = parse("-http-bind-address", "127.0.0.1:1", "-https-bind-address", "[::1]:2").addresses()
	if err != nil || http.Address != "127.0.0.1:1" || https.Address != "[::1]:2" {
		t.Errorf("the addresses are %+v and %+v, %v", http, https, err)
	}
	socket := parse("-unix-socket", "/tmp/dendrite.sock", "-unix-socket-permission", "750", "-tls-cert", "c", "-tls-key", "k")
	http, https, err = socket.addresses()
	if err != nil || !http.IsUnixSocket() || http.Address != "/tmp/dendrite.sock" || http.UnixSocketPermission != 0o750 || https.Enabled() || socket.tls() {
		t.Errorf("the addresses are %+v and %+v, %v", http, https, err)
	}
	for flagName, args := range map[string][]string{
		"-unix-socket":        {"-unix-socket", "s", "-unix-socket-permission", "rwx"},
		"-http-bind-address":  {"-http-bind-address", "a b"},
		"-https-bind-address": {"-https-bind-address", "%"},
	} {
		if _, _, err = parse(args...).addresses(); err == nil || !strings.Contains(err.Error(), flagName) {
			t.Errorf("%v gives the error %v", args, err)
		}
	}
	for _, test := range []struct {
		args []string
		tls  bool
	}{{nil, false}, {[]string{"-tls-cert", "c"}, false}, {[]string{"-tls-key", "k"}, false}, {[]string{"-tls-cert", "c", "-tls-key", "k"}, true}} {
		if got := parse(test.args...).tls(); got != test.tls {
			t.Errorf("%v means TLS: %v", test.args, got)
		}
	}
}
