package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

const (
	plotWidth  = 620 * vg.Length(1) // points
	plotHeight = 400 * vg.Length(1)
	// A logarithmic axis has no place for 0.
	leastPlotted = 0.01 // ms
)

// line is one line of a plot. Lines of one colour belong together.
type line struct {
	name   string
	colour int
	dashes int
	points plotter.XYs
}

func draw(p *plot.Plot, path string, lines []line) error {
	p.Add(plotter.NewGrid())
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Y.Label.Text = "ms"
	p.Legend.Top, p.Legend.Left = true, true
	for _, l := range lines {
		for i := range l.points {
			l.points[i].Y = max(l.points[i].Y, leastPlotted)
		}
		curve, marks, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return err
		}
		curve.Color, marks.Color = plotutil.Color(l.colour), plotutil.Color(l.colour) //nolint:misspell // the library's names
		curve.Dashes, marks.Shape = plotutil.Dashes(l.dashes), plotutil.Shape(l.dashes)
		p.Add(curve, marks)
		p.Legend.Add(l.name, curve, marks)
	}
	return p.Save(plotWidth, plotHeight, path)
}

// drawDelays draws the delay against the offered rate, and returns the files. A rate that a side did not carry is its last point.
func drawDelays(dir string, all []*curve) (files []string, err error) {
	byDatabase := map[string][]line{}
	for _, c := range all {
		median, p99 := line{name: string(c.Side) + ", median"}, line{name: string(c.Side) + ", p99", dashes: 1}
		for _, at := range c.Points {
			median.points = append(median.points, plotter.XY{X: at.Offered, Y: at.Outcome.FromDue.P50})
			p99.points = append(p99.points, plotter.XY{X: at.Offered, Y: at.Outcome.FromDue.P99})
		}
		if len(median.points) == 0 {
			continue
		}
		median.colour, p99.colour = colourOf(c.Side), colourOf(c.Side)
		byDatabase[string(c.Database)] = append(byDatabase[string(c.Database)], median, p99)
	}
	for db, lines := range byDatabase {
		p := plot.New()
		p.Title.Text = fmt.Sprintf("Delay from when a request was due to the message's arrival, %s", db)
		p.X.Label.Text = "messages offered a second; each line ends at the first rate that was not carried"
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		files = append(files, filepath.Join(dir, "delay-"+db+".svg"))
		err = errors.Join(err, draw(p, files[len(files)-1], lines))
	}
	return files, err
}

// drawBacklogs draws what requests cost against how many messages wait for the device, and returns the files.
func drawBacklogs(dir string, all []*backlogCosts, sizes []int) (files []string, err error) {
	byDatabase := map[string][]line{}
	for _, c := range all {
		put, since, nothing := line{name: string(c.Side) + ", PUT"}, line{name: string(c.Side) + ", /sync", dashes: 1}, line{name: string(c.Side) + ", /sync without a since", dashes: 2}
		for i, at := range c.Steps {
			x := float64(i)
			put.points = append(put.points, plotter.XY{X: x, Y: at.Put.P50})
			since.points = append(since.points, plotter.XY{X: x, Y: at.FromToken.P50})
			nothing.points = append(nothing.points, plotter.XY{X: x, Y: at.FromNothing.P50})
		}
		if len(put.points) == 0 {
			continue
		}
		for _, l := range []line{put, since, nothing} {
			l.colour = colourOf(c.Side)
			byDatabase[string(c.Database)] = append(byDatabase[string(c.Database)], l)
		}
	}
	labels := make([]string, len(sizes))
	for i, size := range sizes {
		labels[i] = fmt.Sprint(size)
	}
	for db, lines := range byDatabase {
		p := plot.New()
		p.Title.Text = fmt.Sprintf("Cost of a request against the device's backlog, median, %s", db)
		p.NominalX(labels...)
		p.X.Label.Text = "messages waiting"
		files = append(files, filepath.Join(dir, "backlog-"+db+".svg"))
		err = errors.Join(err, draw(p, files[len(files)-1], lines))
	}
	return files, err
}

func colourOf(s side) int { return map[side]int{unmodified: 0, ours: 1, synapse: 2}[s] }
