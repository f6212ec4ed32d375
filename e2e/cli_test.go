package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// The exit codes of the command line, as its help has them.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitRefused
	exitUnreachable
	exitNotFound
	exitRunning
)

// commandLine runs subcommands of dendrite-todevice to-device.
type commandLine struct {
	server *Server
	token  string // in the environment
	ran    map[string]bool
}

func newCommandLine(s *Server, token string) *commandLine {
	return &commandLine{s, token, map[string]bool{}}
}

// run returns what a subcommand prints. It fails the test if a content or the access token is in it.
func (c *commandLine) run(t *testing.T, code int, args ...string) (out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"to-device"}, args...)...)
	cmd.Dir = t.TempDir() // in which there is no dendrite.yaml
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "TODEVICE_ACCESS_TOKEN="+c.token)
	err := cmd.Run()
	if exitErr := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exitErr) {
		t.Fatal(err)
	}
	out, errs = stdout.String(), stderr.String()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%q: exit code %d, want %d\n%s%s", args, got, code, out, errs)
	}
	if code != exitDone && !strings.Contains(errs, "to-device: ") {
		t.Errorf("%q does not say why it failed: %q", args, errs)
	}
	for _, secret := range []string{secretContent, c.token} {
		if secret != "" && strings.Contains(out+errs, secret) {
			t.Errorf("%q shows what nobody may see:\n%s%s", args, out, errs)
		}
	}
	c.ran[args[0]] = true
	return out, errs
}

// ask is run for a subcommand that asks the server. Flags go before names.
func (c *commandLine) ask(t *testing.T, code int, args ...string) (out, errs string) {
	t.Helper()
	return c.run(t, code, slices.Insert(slices.Clone(args), 1, "-url", c.server.URL)...)
}

// json runs a subcommand with --json and decodes all that it prints.
func (c *commandLine) json(t *testing.T, into any, args ...string) {
	t.Helper()
	out, _ := c.ask(t, exitDone, slices.Insert(slices.Clone(args), 1, "--json")...)
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil || decoder.More() {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// want runs a subcommand and looks for texts in its tables.
func (c *commandLine) want(t *testing.T, texts []string, args ...string) {
	t.Helper()
	out, _ := c.ask(t, exitDone, args...)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("%q: %q is not in\n%s", args, text, out)
		}
	}
}

// subcommands returns those that the help lists.
func (c *commandLine) subcommands(t *testing.T) (names []string) {
	t.Helper()
	out, _ := c.run(t, exitDone, "-h")
	_, list, _ := strings.Cut(out, "COMMANDS:\n")
	for _, row := range regexp.MustCompile(`(?m)^   ([a-z][a-z-]+) `).FindAllStringSubmatch(list, -1) {
		names = append(names, row[1])
	}
	return names
}

// Every subcommand against a running server.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		site := newAdminSite(t, b)
		token := RegisterAdmin(t, site.server).AccessToken
		api, cli := NewAdminAPI(site.server, token), newCommandLine(site.server, token)
		messageID := unique("msgid")
		for range 2 {
			site.alice.Send(t, "m.test", To(withMessageID(messageID), site.bob))
		}
		site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.other))
		refused := site.refuse(t, api, 2)
		site.setAside(t)

		cli.lookAround(t, site, messageID, refused)
		cli.change(t, site, refused)
		cli.wrong(t, site)
		cli.config(t, token)
		cli.export(t, site)
		for _, name := range cli.subcommands(t) {
			if !cli.ran[name] {
				t.Errorf("%s was not tried", name)
			}
		}
		wantNoContent(t, site.server)
	})
}

func (c *commandLine) lookAround(t *testing.T, site *adminSite, messageID string, refused []admin.Refusal) {
	t.Helper()
	bob, device, remote := site.bob.UserID.String(), string(oddDevice), site.remote.Name
	var status admin.Status
	if c.json(t, &status, "status"); status.Queues.Messages != 3 || status.Outbox.SetAside != 2 {
		t.Errorf("%+v", status)
	}
	c.want(t, []string{"Messages waiting           3", "Set aside                  2", "dendrite_todevice_messages_stored_total "}, "status")
	var queues admin.Queues
	if c.json(t, &queues, "queues"); len(queues.Queues) != 2 || queues.Queues[0].DeviceID != device {
		t.Errorf("%+v", queues)
	}
	c.want(t, []string{"USER ", bob, device, site.other.DeviceID.String()}, "queues", "--order", "age")
	out, errs := c.ask(t, exitDone, "queues", "-limit", "1")
	if strings.Count(out, "\n") != 2 || !strings.Contains(errs, "There are more") {
		t.Errorf("%s%s", out, errs)
	}
	var messages admin.Messages
	if c.json(t, &messages, "queues", bob, device); len(messages.Messages) != 2 || messages.Messages[0].MessageID != messageID {
		t.Errorf("%+v", messages)
	}
	c.want(t, []string{"m.test", messageID, site.alice.UserID.String()}, "queues", bob, device)
	var destinations admin.Destinations
	if c.json(t, &destinations, "outbox"); len(destinations.Destinations) != 1 || destinations.Destinations[0].Destination != remote {
		t.Errorf("%+v", destinations)
	}
	c.want(t, []string{"SET ASIDE", remote}, "outbox")
	var one struct {
		Destination admin.Destination
		admin.Refused
	}
	if c.json(t, &one, "outbox", remote); one.Destination.SetAside != 2 || len(one.Refused.Refused) != 2 {
		t.Errorf("%+v", one)
	}
	c.want(t, []string{remote, refused[0].MessageID, itoa(refused[1].Position), "set aside", "400 M_BAD_JSON"}, "outbox", remote)
	var found admin.Trace
	if c.json(t, &found, "trace", "-message-id", messageID); len(found.Records) != 4 || found.Records[0].Step != "accepted" {
		t.Errorf("%+v", found)
	}
	c.want(t, []string{"stored", messageID, bob}, "trace", "--user", bob, "-device", device, "-sender", site.alice.UserID.String())
	c.want(t, []string{"refused", refused[0].MessageID, remote}, "trace", "-edu-id", refused[0].MessageID)
}

func (c *commandLine) change(t *testing.T, site *adminSite, refused []admin.Refusal) {
	t.Helper()
	bob, device, remote := site.bob.UserID.String(), string(oddDevice), site.remote.Name
	site.remote.Behave(func(*Transaction) Reply { return accept() })
	c.want(t, []string{"1"}, "retry", remote, itoa(refused[0].Position))
	eventually(t, "the message arrives", func() (bool, any) { n := len(site.remote.Messages()); return n == 1, n })
	var retried admin.Retried
	if c.json(t, &retried, "retry", remote); retried.Retried != 1 {
		t.Errorf("%+v", retried)
	}
	eventually(t, "the message arrives", func() (bool, any) { n := len(site.remote.Messages()); return n == 2, n })
	wantNothingKept(t, site.server, remote)

	site.remote.Behave(refusePoison(http.StatusBadRequest, "M_BAD_JSON"))
	refused = site.refuse(t, NewAdminAPI(site.server, c.token), 3)
	site.setAside(t)
	c.ask(t, exitUsage, "discard", remote) // nobody has confirmed it
	c.want(t, []string{"1"}, "discard", "-yes", remote, itoa(refused[1].Position))
	var discarded admin.Discarded
	if c.json(t, &discarded, "discard", "-yes", remote); discarded.Discarded != 2 {
		t.Errorf("%+v", discarded)
	}
	wantNothingKept(t, site.server, remote)

	c.ask(t, exitUsage, "purge", bob)
	var deleted admin.Deleted
	if c.json(t, &deleted, "purge", "--yes", bob, device); deleted.Deleted != 2 {
		t.Errorf("%+v", deleted)
	}
	c.want(t, []string{"1"}, "purge", "-yes", bob)
	c.want(t, []string{"0"}, "purge", "-yes", bob, device)
	c.ask(t, exitNotFound, "purge", "-yes", bob, "-url=http://nobody.example.org") // the name of a device, if anything
	c.ask(t, exitNotFound, "outbox", "help")
}

func (c *commandLine) wrong(t *testing.T, site *adminSite) {
	t.Helper()
	c.ask(t, exitNotFound, "queues", "@nobody:"+site.server.name, "A")
	c.ask(t, exitNotFound, "purge", "-yes", "@nobody:"+site.server.name)
	c.ask(t, exitNotFound, "outbox", "nobody.example.org")
	c.ask(t, exitNotFound, "retry", "nobody.example.org")
	c.ask(t, exitNotFound, "discard", "-yes", "nobody.example.org", "1")
	for _, args := range [][]string{
		{"status", "extra"}, {"status", "-nonsense"}, {"queues", "@bob:x"}, {"queues", "-limit", "0"}, {"queues", "-order", "name"}, {"queues", "bob", "A"},
		{"outbox", "a", "b"}, {"trace"}, {"trace", "-device", "A"}, {"trace", "-message-id", "x", "-limit", "10001"}, {"purge", "-yes"}, {"retry"},
		{"retry", "a", "b"}, {"discard", "-yes", "a", "b", "c"}, {"outbox", ""}, {"purge", "-yes", "@bob:x", ""},
		{"purge", "-yes", "@bob:x", "--"}, {"queues", "@bob:x", "A", "-json"}, {"nonsense"},
	} {
		c.ask(t, exitUsage, args...)
	}
	for _, args := range [][]string{{}, {"status", "-url", "nonsense"}, {"status", "-url", "ftp://x"}, {"status", "-token-file", "/nonexistent"}, {"status", "-config", "/nonexistent"}, {"export", "extra"}, {"check-config", "extra"}} {
		c.run(t, exitUsage, append(args, "-json")...)
	}
	address, err := remote.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	c.run(t, exitUnreachable, "status", "-url", "http://"+address)
	c.run(t, exitUnreachable, "status", "-url", "unix:///nonexistent/socket")
	// Something else answers there.
	c.run(t, exitFailed, "status", "-url", site.server.URL+"/elsewhere")
}

// config tries what dendrite.yaml has for the command line.
func (c *commandLine) config(t *testing.T, token string) {
	t.Helper()
	file := c.server.path("dendrite.yaml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, change func(section object)) string {
		var cfg object
		if err := json.Unmarshal(content, &cfg); err != nil {
			t.Fatal(err)
		}
		change(cfg["to_device"].(object))
		name = c.server.path(name)
		if err := writeJSON(name, cfg); err != nil {
			t.Fatal(err)
		}
		return name
	}
	tokenFile := c.server.path("token")
	if err = os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	withAdmin := write("admin.yaml", func(section object) {
		section["admin"] = object{"url": c.server.URL, "access_token_file": tokenFile}
	})
	tokenless := newCommandLine(c.server, "")
	tokenless.run(t, exitDone, "status", "-config", withAdmin)
	tokenless.run(t, exitDone, "status", "-url", c.server.URL, "-token-file", tokenFile)
	tokenless.ask(t, exitUsage, "status")

	out, _ := c.run(t, exitUsage, "check-config", "-config", withAdmin) // the server is started with another flag
	if !strings.Contains(out, "-really-enable-open-registration") {
		t.Error(out)
	}
	out, _ = c.run(t, exitDone, "check-config", "-config", withAdmin, "-really-enable-open-registration")
	if !strings.Contains(out, "no faults") || !strings.Contains(out, "is enabled") {
		t.Error(out)
	}
	faulty := write("faulty.yaml", func(section object) { section["sync_limit"], section["nonsense"] = 0, 1 })
	for _, args := range [][]string{{"check-config", "-config", faulty}, {"check-config", "--config", faulty, "-json"}} {
		out, _ = c.run(t, exitUsage, args...)
		for _, fault := range []string{"to_device.sync_limit: ", "to_device.nonsense: "} {
			if !strings.Contains(out, fault) {
				t.Errorf("%q does not name %s\n%s", args, fault, out)
			}
		}
	}
	c.run(t, exitUsage, "status", "-config", faulty)
	c.run(t, exitUsage, "export", "-config", faulty)
}

func (c *commandLine) export(t *testing.T, site *adminSite) {
	t.Helper()
	file := c.server.path("dendrite.yaml")
	site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.bob))
	c.run(t, exitRunning, "export", "-config", file)
	if err := c.server.Stop(); err != nil {
		t.Fatal(err)
	}
	c.ask(t, exitUnreachable, "status")
	var report struct{ Queues struct{ Messages int } }
	out, _ := c.run(t, exitDone, "export", "-config", file, "-json", "-force") // for the connections of this test
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Queues.Messages != 1 {
		t.Errorf("%v: %s", err, out)
	}
	out, _ = c.run(t, exitDone, "export", "-config", file, "-force")
	if !strings.Contains(out, "Moved 0 messages") {
		t.Error(out)
	}
}

// Who writes a flag of the server's before the subcommand does not start a server.
func TestCommandLineBehindFlags(t *testing.T) {
	for _, args := range [][]string{{"to-device", "export"}, {"quickstart"}} {
		ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
		cmd := exec.CommandContext(ctx, binary, append([]string{"-config", "dendrite.yaml"}, args...)...)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		cancel()
		if exited := (*exec.ExitError)(nil); !errors.As(err, &exited) || exited.ExitCode() != exitUsage || !strings.Contains(string(out), "goes before every flag") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// Nobody but an administrator gets anything done.
func TestCommandLineRefusesOthers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice := Register(t, s, "alice")
		for _, token := range []string{alice.AccessToken, "made_up"} {
			cli := newCommandLine(s, token)
			user, device := alice.UserID.String(), alice.DeviceID.String()
			for _, args := range [][]string{
				{"status"}, {"queues"}, {"queues", user, device}, {"outbox"}, {"outbox", "a.example.org"}, {"trace", "-user", user},
				{"purge", "-yes", user}, {"purge", "-yes", user, device}, {"retry", "a.example.org"}, {"retry", "a.example.org", "1"},
				{"discard", "-yes", "a.example.org"}, {"discard", "-yes", "a.example.org", "1"},
			} {
				cli.ask(t, exitRefused, args...)
			}
			for _, name := range cli.subcommands(t) {
				if !cli.ran[name] && !slices.Contains([]string{"export", "check-config", "help"}, name) {
					t.Errorf("%s was not tried", name)
				}
			}
		}
	})
}

// Answers of a server that is not to be trusted do not steer the terminal.
func TestCommandLinePrintsNoControlCharacters(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		site := newAdminSite(t, b)
		cli := newCommandLine(site.server, RegisterAdmin(t, site.server).AccessToken)
		const odd = "\x1b[2J\u202e\n"
		bob := site.other.Login(t, site.server, "DEVICE"+odd)
		site.alice.Send(t, "m.test"+odd, To(withMessageID("id"+odd), bob))
		for _, args := range [][]string{{"queues"}, {"queues", bob.UserID.String(), bob.DeviceID.String()}, {"trace", "-sender", site.alice.UserID.String()}} {
			out, errs := cli.ask(t, exitDone, args...)
			if strings.ContainsAny(out+errs, "\x1b\u202e") || !strings.Contains(out, `\x1b[2J\u202e\n`) {
				t.Errorf("%q: %q", args, out)
			}
		}
	})
}

// The socket that Dendrite may listen on in the place of a port.
func TestCommandLineOverASocket(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		token := RegisterAdmin(t, s).AccessToken
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		socket := s.path("socket")
		cmd := exec.Command(binary, "-config", s.path("dendrite.yaml"), "-unix-socket", socket, "-really-enable-open-registration")
		cmd.Dir = s.home
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		}()
		within(t, startDeadline, "the socket is there", func() (bool, any) {
			_, err := os.Stat(socket)
			return err == nil, err
		})
		var out string
		within(t, startDeadline, "the server answers", func() (bool, any) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			status := exec.CommandContext(ctx, binary, "to-device", "status", "-url", "unix://"+socket)
			status.Env = append(os.Environ(), "TODEVICE_ACCESS_TOKEN="+token)
			data, err := status.CombinedOutput()
			out = string(data)
			return err == nil, out
		})
		if !strings.Contains(out, "Last position") {
			t.Error(out)
		}
		newCommandLine(s, "made_up").run(t, exitRefused, "status", "-url", "unix://"+socket)
		newCommandLine(s, "").run(t, exitUsage, "status", "-url", "unix://"+socket, "-token-file", s.path("dendrite.yaml"))
	})
}
