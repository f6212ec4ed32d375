package trace

// Tee returns a Recorder that hands records to each of the recorders, in their order. Those that are nil are passed over; without
// any other it returns nil.
func Tee(recorders ...Recorder) Recorder {
	var all tee
	for _, r := range recorders {
		if r != nil {
			all = append(all, r)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

type tee []Recorder

func (t tee) Record(records ...Record) {
	for _, r := range t {
		r.Record(records...)
	}
}
