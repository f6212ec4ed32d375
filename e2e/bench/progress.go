package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progress tells on stderr what the program does now.
type progress struct {
	to    io.Writer
	start time.Time
	where []string // database, row, side
}

func (p *progress) at(where ...string) { p.where = where }

func (p *progress) say(format string, args ...any) {
	parts := append(append([]string{}, p.where...), fmt.Sprintf(format, args...))
	fmt.Fprintf(p.to, "%7s  %s\n", time.Since(p.start).Round(time.Second), strings.Join(parts, " | "))
}
