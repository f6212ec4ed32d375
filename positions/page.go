package positions

import (
	"bytes"
	"encoding/json"
)

// Page gathers the items of a part within limits.
type Page struct {
	limits Limits
	items  [][]byte
	bytes  int
	last   Position
	full   bool
}

// NewPage returns a page without items.
func NewPage(limits Limits) *Page { return &Page{limits: limits.orDefault()} }

// Add takes the next item, in order of the positions, of which no two may be the same: a part ends between two positions. It returns false
// where the item goes beyond the limits: it and what follows is for the next page. The first item is always taken.
func (p *Page) Add(position Position, item json.RawMessage) bool {
	if p.full = p.full || len(p.items) > 0 && (len(p.items) == p.limits.Items || p.bytes+len(item) > p.limits.Bytes); p.full {
		return false
	}
	p.items, p.bytes, p.last = append(p.items, item), p.bytes+len(item), position
	return true
}

// Part returns the items as {"events":[...]}, in the manner of the other parts of a /sync response. It goes up to to, unless the page is
// full; without items it has no JSON.
func (p *Page) Part(to Position) Part {
	if len(p.items) == 0 {
		return Part{Position: to}
	}
	if p.full {
		to = p.last
	}
	var json bytes.Buffer
	json.WriteString(`{"events":[`)
	json.Write(bytes.Join(p.items, []byte{','}))
	json.WriteString(`]}`)
	return Part{JSON: json.Bytes(), Position: to}
}

func (l Limits) orDefault() Limits {
	if l.Items == 0 {
		l.Items = defaultItems
	}
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	return l
}
