package main

import (
	"flag"
	"fmt"

	"github.com/matrix-org/dendrite/setup/config"
)

// serverFlags are the flags of Dendrite's own command; the others come with the packages of the
// host.
type serverFlags struct {
	unixSocket, unixSocketPermission *string
	httpAddress, httpsAddress        *string
	certFile, keyFile                *string
}

func addServerFlags(set *flag.FlagSet) serverFlags {
	return serverFlags{
		unixSocket:           set.String("unix-socket", "", "EXPERIMENTAL(unstable): The HTTP listening unix socket for the server (disables http[s]-bind-address feature)"),
		unixSocketPermission: set.String("unix-socket-permission", "755", "EXPERIMENTAL(unstable): The HTTP listening unix socket permission for the server (in chmod format like 755)"),
		httpAddress:          set.String("http-bind-address", ":8008", "The HTTP listening port for the server"),
		httpsAddress:         set.String("https-bind-address", ":8448", "The HTTPS listening port for the server"),
		certFile:             set.String("tls-cert", "", "The PEM formatted X509 certificate to use for TLS"),
		keyFile:              set.String("tls-key", "", "The PEM private key to use for TLS"),
	}
}

// addresses returns where to listen for HTTP, and for HTTPS if that is wanted.
func (f serverFlags) addresses() (http, https config.ServerAddress, err error) {
	if *f.unixSocket != "" {
		if http, err = config.UnixSocketAddress(*f.unixSocket, *f.unixSocketPermission); err != nil {
			err = fmt.Errorf("-unix-socket: %w", err)
		}
		return http, https, err
	}
	if http, err = config.HTTPAddress("http://" + *f.httpAddress); err != nil {
		return http, https, fmt.Errorf("-http-bind-address: %w", err)
	}
	if https, err = config.HTTPAddress("https://" + *f.httpsAddress); err != nil {
		return http, https, fmt.Errorf("-https-bind-address: %w", err)
	}
	return http, https, nil
}

func (f serverFlags) tls() bool {
	return *f.unixSocket == "" && *f.certFile != "" && *f.keyFile != ""
}
