package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/host"
)

const (
	tokenVariable = "TODEVICE_ACCESS_TOKEN"
	urlFlag       = "url"
	tokenFlag     = "token-file"

	// answerTimeout is longer than the server takes for a call.
	answerTimeout  = 40 * time.Second
	maxAnswerBytes = 64 << 20
	maxTokenBytes  = 64 << 10
)

func clientFlags(flags ...cli.Flag) []cli.Flag {
	return append(flags,
		&cli.StringFlag{Name: urlFlag, Usage: "`URL` of the server, or unix:///path (default: to_device.admin.url of the configuration)"},
		&cli.StringFlag{Name: tokenFlag, Usage: "`FILE` with an administrator's access token"},
	)
}

// client asks the admin API of a running server.
type client struct {
	http  *http.Client
	base  string
	token string
}

// newClient puts together what the flags, the environment and the configuration say, in this order.
func newClient(cmd *cli.Command) (*client, error) {
	server, token := cmd.String(urlFlag), os.Getenv(tokenVariable)
	tokenFile := cmd.String(tokenFlag)
	if cmd.IsSet(configFlag) || server == "" || tokenFile == "" && token == "" {
		config, err := adminConfig(cmd)
		if err != nil {
			return nil, err
		}
		if server == "" {
			server = config.URL
		}
		if tokenFile == "" && token == "" {
			tokenFile = config.AccessTokenFile
		}
	}
	if tokenFile != "" {
		var err error
		if token, err = readToken(tokenFile); err != nil {
			return nil, err
		}
	}
	if token = strings.TrimSpace(token); token == "" {
		return nil, exit(exitUsage, "an administrator's access token is missing: name a file with it by -%s, or set %s%s", tokenFlag, tokenVariable, configHint(cmd))
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, exit(exitUsage, "the access token has a space or another character in it that no access token has")
	}
	return clientFor(server, token)
}

// adminConfig reads the section of the configuration that is for the command line. A configuration that nobody named need not
// be there.
func adminConfig(cmd *cli.Command) (todevicemodule.AdminConfig, error) {
	name := cmd.String(configFlag)
	config, err := host.ReadConfig(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !cmd.IsSet(configFlag):
		return todevicemodule.DefaultConfig().Admin, nil
	case err != nil:
		return config.Admin, exit(exitUsage, "%s: %w", name, err)
	}
	return config.Admin, nil
}

// configHint is for whoever misses what dendrite.yaml says.
func configHint(cmd *cli.Command) string {
	name := cmd.String(configFlag)
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf(" (there is no %s here: name it by -%s)", name, configFlag)
	}
	return ""
}

func readToken(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", exit(exitUsage, "reading the access token: %w", err)
	}
	defer file.Close() //nolint:errcheck
	content, err := io.ReadAll(io.LimitReader(file, maxTokenBytes))
	if err != nil {
		return "", exit(exitUsage, "reading the access token: %w", err)
	}
	if len(strings.TrimSpace(string(content))) == 0 {
		return "", exit(exitUsage, "%s has no access token in it", name)
	}
	return string(content), nil
}

func clientFor(server, token string) (*client, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, exit(exitUsage, "-%s: %w", urlFlag, err)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment}
	c := &client{
		token: token,
		http: &http.Client{
			Transport: transport, Timeout: answerTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", u.Path)
		}
		c.base = "http://localhost"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil:
		c.base = strings.TrimSuffix(server, "/")
	default:
		return nil, exit(exitUsage, "-%s must be like http://localhost:8008, or unix:///path of a socket, but is %q", urlFlag, u.Redacted())
	}
	return c, nil
}

// call sends one request and decodes its answer. The parts of the path are percent-encoded here.
func (c *client) call(ctx context.Context, method string, parts []string, query url.Values, into any) error {
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	target := c.base + admin.Prefix + "/" + strings.Join(parts, "/")
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return exit(exitUsage, "%w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return exit(exitFailed, "interrupted")
		}
		return exit(exitUnreachable, "the server can't be reached: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return exit(exitUnreachable, "the answer did not arrive whole: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return refusalOf(res.StatusCode, body)
	}
	if err = json.Unmarshal(body, into); err != nil {
		return exit(exitFailed, "%w: %w", errAnswer, err)
	}
	if !isWhole(body, into) {
		return exit(exitFailed, "%w", errAnswer)
	}
	return nil
}

var errAnswer = errors.New("the server's answer is not one of the admin API's; is the URL right?")

// isWhole tells if an answer has every key of the value that was read from it, but for those that may be left out. What else
// answers at a wrong URL may say anything with a 200.
func isWhole(answer []byte, value any) bool {
	var got, want any
	encoded, err := json.Marshal(value)
	return err == nil && json.Unmarshal(encoded, &want) == nil && json.Unmarshal(answer, &got) == nil && covers(got, want)
}

// covers tells if a JSON value has all that another one has, and null only where that has.
func covers(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, _ := got.(map[string]any)
		for key, value := range want {
			if found, there := object[key]; !there || !covers(found, value) {
				return false
			}
		}
		return true
	case []any:
		list, _ := got.([]any)
		for i, value := range want {
			if i >= len(list) || !covers(list[i], value) {
				return false
			}
		}
		return true
	default:
		return got != nil || want == nil
	}
}

// refusalOf tells an answer other than 200.
func refusalOf(status int, body []byte) error {
	var answer struct {
		ErrCode string `json:"errcode"`
		Error   string `json:"error"`
	}
	_ = json.Unmarshal(body, &answer) // without JSON the status says enough
	said := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if answer.ErrCode != "" {
		said = fmt.Sprintf("%d %s: %s", status, printable(answer.ErrCode), printable(answer.Error))
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return exit(exitRefused, "the server refuses: %s", said)
	case status == http.StatusNotFound && answer.ErrCode == "M_NOT_FOUND":
		return exit(exitNotFound, "%s", printable(answer.Error))
	case status == http.StatusNotFound:
		return exit(exitFailed, "there is no admin API of to_device at %s: is the URL right, and is to_device enabled?", path.Clean(admin.Prefix))
	case status == http.StatusBadRequest:
		return exit(exitUsage, "%s", said)
	default:
		return exit(exitFailed, "the server failed: %s", said)
	}
}

// asking is the action of a subcommand that asks the server, with one of the given numbers of arguments.
func asking(ask func(ctx context.Context, cmd *cli.Command, c *client, args []string) error, counts ...int) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		args, err := arguments(cmd, counts...)
		if err != nil {
			return err
		}
		c, err := newClient(cmd)
		if err != nil {
			return err
		}
		return ask(ctx, cmd, c, args)
	}
}
