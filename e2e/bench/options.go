package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

// options are what the command line says, and what follows from it.
type options struct {
	short       bool
	rows        []row
	databases   []e2e.Backend
	out         string
	profiles    string // directory, empty for none
	withSynapse bool
	window      int64

	rounds                   int
	warmUp, length           time.Duration // of each load
	patience                 time.Duration // for what is late
	fillWithin, storedWithin time.Duration // for a backlog
	rates                    []float64
	backlogs                 []int
	backlogElse              int // the most of the other sides, which take long for it
	million, millionElse     int
	millionUsers             int // for whose devices they wait
}

func parseOptions(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.short, "short", false, "take less than 5 minutes: one round, short loads, small backlogs")
	flags.StringVar(&o.out, "out", "bench/out", "`directory` for the JSON and the plots")
	flags.StringVar(&o.profiles, "profile", "", "`directory` for CPU and allocation profiles of our server in each row; they slow it down a little")
	flags.BoolVar(&o.withSynapse, "synapse", false, "measure Synapse too, with PostgreSQL")
	flags.Int64Var(&o.window, "window", 400, "let at most so many messages be on their way before senders without a rate wait; 0 for no bound")
	flags.DurationVar(&o.length, "length", 0, "how long each load lasts; 0 for 10s, or 2s with -short")
	flags.IntVar(&o.rounds, "rounds", 0, "how often each load is measured; 0 for 3, or 1 with -short")
	rowList := flags.String("rows", "", "measure these alone, separated by commas: "+rowNames())
	databases := flags.String("databases", "postgres,sqlite", "measure on these")
	if err = flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected %q", flags.Args())
	}
	if o.rows, err = selectRows(*rowList); err != nil {
		return o, err
	}
	for name := range strings.SplitSeq(*databases, ",") {
		switch db := e2e.Backend(name); db {
		case e2e.Postgres, e2e.SQLite:
			o.databases = append(o.databases, db)
		default:
			return o, fmt.Errorf("no database %q", name)
		}
	}
	o.setLengths()
	return o, nil
}

func (o *options) setLengths() {
	rounds, length := 3, 10*time.Second
	o.warmUp, o.patience, o.fillWithin, o.storedWithin = 2*time.Second, 3*time.Minute, 5*time.Minute, 5*time.Minute
	o.rates = []float64{25, 50, 100, 200, 400, 800, 1000, 1500, 2000, 3000, 4000}
	o.backlogs, o.backlogElse = []int{0, 100, 1000, 10000, 100000}, 10000
	o.million, o.millionElse, o.millionUsers = 1000000, 50000, 50
	if o.short {
		rounds, length = 1, 2*time.Second
		o.warmUp, o.patience, o.fillWithin, o.storedWithin = 500*time.Millisecond, time.Minute, time.Minute, time.Minute
		o.rates = []float64{100, 400, 1600}
		o.backlogs, o.backlogElse = []int{0, 100, 1000, 5000}, 1000
		o.million, o.millionElse, o.millionUsers = 50000, 2000, 10
	}
	if o.rounds <= 0 {
		o.rounds = rounds
	}
	if o.length <= 0 {
		o.length = length
	}
}
