package pgtest

import (
	"bytes"
	"fmt"
	"io"
)

// Tool runs a program of this server's installation, pg_dump say, as the user that the server runs as. Input and output may be nil.
func (s *Server) Tool(in io.Reader, out io.Writer, name string, args ...string) error {
	var complaints bytes.Buffer
	cmd := s.command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &complaints
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, &complaints)
	}
	return nil
}
