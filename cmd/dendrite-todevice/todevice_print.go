package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/urfave/cli/v3"
)

// show prints a value as JSON if that is wanted, and else as tables.
func (t terminal) show(cmd *cli.Command, value any, tables func()) error {
	if !cmd.Bool(jsonFlag) {
		tables()
		return nil // or what output has kept
	}
	encoded, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, "%s\n", escaped(encoded))
	return err
}

// escaped has JSON's escapes for what may steer a terminal, of which the encoder leaves the C1 controls and the marks of the
// writing direction as they are. They can stand in strings alone.
func escaped(encoded []byte) string {
	var b strings.Builder
	for _, r := range string(encoded) {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// table prints rows below their headings.
func (t terminal) table(headings []string, rows [][]string) {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		_, _ = fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	_ = w.Flush()
}

// pairs prints a table of names and values.
func (t terminal) pairs(pairs ...string) {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", pairs[i], pairs[i+1])
	}
	_ = w.Flush()
}

const none = "-"

// printable returns text from outside so that it can't steer the terminal or pass for another column, for nothing or for a text
// that was quoted.
func printable(s string) string {
	if s == "" {
		return none
	}
	if s == none || strings.HasPrefix(s, `"`) || strings.TrimSpace(s) != s || strings.Contains(s, "  ") {
		return strconv.QuoteToASCII(s)
	}
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

func number[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }

func optional(n *int64, format func(int64) string) string {
	if n == nil {
		return none
	}
	return format(*n)
}

func moment(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func seconds(n int64) string { return (time.Duration(n) * time.Second).String() }

func bytesOf(n int64) string {
	const unit = 1024
	if n < unit {
		return number(n) + " B"
	}
	value, units := float64(n), "KMGTPE"
	i := -1
	for ; value >= unit && i+1 < len(units); i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}
