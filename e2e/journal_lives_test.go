package e2e

import (
	"encoding/json"
	"testing"
)

// What a receiver that is deleted and signed in again must get, may get and must not get.
func TestJournalOfDeletedReceivers(t *testing.T) {
	const here, there, bob = "@alice:here", "@alice:there", "@bob:here|PHONE"
	type step func(j *Journal, m journalMessage)
	sent := func(j *Journal, m journalMessage) { j.Sent(m, []string{bob}) }
	accepted := func(j *Journal, m journalMessage) { j.Accepted(m, []string{bob}, 1) }
	givenUp := func(j *Journal, m journalMessage) { j.GivenUp(m, []string{bob}) }
	deleting := func(j *Journal, _ journalMessage) { j.Deleting(bob) }
	signedIn := func(j *Journal, _ journalMessage) { j.SignedIn(bob) }
	arrived := func(life int) step {
		return func(j *Journal, m journalMessage) {
			content, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err = j.ArrivedIn(life, bob, []Event{{Sender: m.Sender, Content: content}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		sender string
		steps  []step
		want   Figures
	}{
		"arrived before":                    {here, []step{sent, accepted, arrived(0), deleting, signedIn}, Figures{Accepted: 1, Arrived: 1}},
		"arrived meanwhile":                 {here, []step{sent, accepted, deleting, arrived(0), signedIn}, Figures{Accepted: 1, Arrived: 1}},
		"ended with the device":             {here, []step{sent, accepted, deleting, signedIn}, Figures{Accepted: 1, Deleted: 1}},
		"delivered after deletion":          {here, []step{sent, accepted, deleting, signedIn, arrived(1)}, Figures{Accepted: 1, Arrived: 1, AfterDeletion: 1}},
		"delivered again after deletion":    {here, []step{sent, accepted, arrived(0), deleting, signedIn, arrived(1)}, Figures{Accepted: 1, Arrived: 2, AfterDeletion: 1}},
		"on its way from another server":    {there, []step{sent, accepted, deleting, signedIn, arrived(1)}, Figures{Accepted: 1, Arrived: 1}},
		"two deletions later":               {here, []step{sent, deleting, accepted, signedIn, deleting, signedIn, arrived(2)}, Figures{Accepted: 1, Arrived: 1, AfterDeletion: 1}},
		"overlapping, arrived":              {here, []step{sent, deleting, accepted, signedIn, arrived(1)}, Figures{Accepted: 1, Arrived: 1}},
		"overlapping, not arrived":          {here, []step{sent, deleting, accepted, signedIn}, Figures{Accepted: 1, Deleted: 1}},
		"overlapping the sign-in":           {here, []step{deleting, sent, signedIn, accepted}, Figures{Accepted: 1, Deleted: 1}},
		"without an answer":                 {here, []step{sent, givenUp, deleting, signedIn, arrived(1)}, Figures{GivenUp: 1, Arrived: 1}},
		"sent afterwards":                   {here, []step{deleting, signedIn, sent, accepted, arrived(1)}, Figures{Accepted: 1, Arrived: 1}},
		"sent afterwards and lost":          {here, []step{deleting, signedIn, sent, accepted}, Figures{Accepted: 1, Lost: 1}},
		"sent afterwards, by the old token": {here, []step{deleting, signedIn, sent, arrived(0), accepted}, Figures{Accepted: 1, Arrived: 1, Leaked: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			j, m := NewJournal(), journalMessage{Sender: test.sender}
			for _, step := range test.steps {
				step(j, m)
			}
			got := j.Check()
			if got.Deletions == 0 {
				t.Error("no deletion is counted")
			}
			got.Deletions = 0
			if got != test.want {
				t.Errorf("want %+v\ngot %+v\n%s", test.want, got, j.Faults())
			}
			if waits := j.Outstanding(bob); waits != test.want.Lost {
				t.Errorf("%d copies are waited for, want %d", waits, test.want.Lost)
			}
		})
	}
}
