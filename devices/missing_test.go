package devices_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
)

// Of each target it is known whether it reached anybody, whichever way its user was looked up.
func TestMissing(t *testing.T) {
	for name, test := range map[string]struct {
		targets []devices.Target
		want    []string
	}{
		"none":                 {[]devices.Target{target("@alice:x", "PHONE", ""), target("@bob:x", "*", "")}, nil},
		"unknown device":       {[]devices.Target{target("@alice:x", "TABLET", ""), target("@alice:x", "PHONE", "")}, []string{"@alice:x/TABLET"}},
		"of another user":      {[]devices.Target{target("@bob:x", "LAPTOP", "")}, []string{"@bob:x/LAPTOP"}},
		"unknown beside all":   {[]devices.Target{target("@alice:x", "*", ""), target("@alice:x", "TABLET", "")}, []string{"@alice:x/TABLET"}},
		"all named beside all": {[]devices.Target{target("@bob:x", "*", ""), target("@bob:x", "PHONE", "")}, nil},
		"unknown user":         {[]devices.Target{target("@eve:x", "*", ""), target("@eve:x", "PHONE", "")}, []string{"@eve:x/*", "@eve:x/PHONE"}},
		"not storable":         {[]devices.Target{target("@alice:x", "A\x00", "")}, []string{"@alice:x/A\x00"}},
	} {
		for _, others := range []int{0, 20} {
			t.Run(fmt.Sprintf("%s, %d others", name, others), func(t *testing.T) {
				d, h := newDirectory(t)
				all, want := slices.Concat(test.targets, manyUsers(h, others)), slices.Clone(test.want)
				for i := range others {
					want = append(want, fmt.Sprintf("@user%d:x/GONE%d", i, i))
				}
				slices.Sort(want)
				for range 2 { // from the host and from the cache
					var got []string
					for _, m := range resolve(t, d, all...).Missing {
						got = append(got, m.UserID+"/"+m.DeviceID)
					}
					slices.Sort(got)
					if !slices.Equal(got, want) {
						t.Errorf("missing are %q, want %q", got, want)
					}
				}
			})
		}
	}
}

func TestMessageIDsGoWithTheCopies(t *testing.T) {
	d, _ := newDirectory(t)
	identified := func(userID, deviceID, id string) devices.Target {
		target := target(userID, deviceID, id)
		target.MessageID = id
		return target
	}
	r := resolve(t, d, identified("@alice:x", "*", "all"), identified("@alice:x", "PHONE", "phone"), identified("@bob:x", "PHONE", ""), identified("@bob:x", "GONE", "gone"))
	if len(r.Copies) != 3 || len(r.MessageIDs) != 3 {
		t.Fatalf("there are the copies %v and the IDs %q", copies(r), r.MessageIDs)
	}
	for i, c := range r.Copies {
		if string(c.Content) != r.MessageIDs[i] {
			t.Errorf("%s has the ID %q", c.Content, r.MessageIDs[i])
		}
	}
	if len(r.Missing) != 1 || r.Missing[0].MessageID != "gone" {
		t.Errorf("missing are %v", r.Missing)
	}
	if r = resolve(t, d, target("@alice:x", "*", "x")); r.MessageIDs != nil {
		t.Errorf("without IDs there are %q", r.MessageIDs)
	}
}
