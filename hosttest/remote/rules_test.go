package remote

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// What other tests count on a server to find, it finds.
func TestServerFindsFaults(t *testing.T) {
	message := func(messageID, messages string) string {
		return fmt.Sprintf(`{"edu_type":"m.direct_to_device","origin":"here","content":{"sender":"@a:here","type":"m.test","message_id":%q,"messages":%s}}`, messageID, messages)
	}
	one := `{"@b:there":{"DEVICE":{"n":1}}}`
	good := message("good", one)
	large := strings.Repeat("x", MaxEDUBytes)
	body := func(ts int, pdus []string, edus ...string) string {
		return fmt.Sprintf(`{"origin":"here","origin_server_ts":%d,"pdus":[%s],"edus":[%s]}`, ts, strings.Join(pdus, ","), strings.Join(edus, ","))
	}
	many := func(n int, document string) []string {
		return strings.Split(strings.Repeat(document+" ", n)[:n*(len(document)+1)-1], " ")
	}
	for name, test := range map[string]struct {
		transactions [][2]string // ID and body
		want         string
	}{
		"none": {[][2]string{
			{"1", body(1, nil, good)}, {"1", body(1, nil, good)}, {"2", body(2, many(50, `{}`), many(100, good)...)},
			{"3", body(3, nil, message("large", `{"@b:there":{"*":{"a":"`+large+`"}}}`))},
		}, ""},
		"two contents": {[][2]string{{"1", body(1, nil, good)}, {"1", body(1, nil, good, message("next", one))}}, "two contents"},
		"two PDUs":     {[][2]string{{"1", body(1, many(1, `{"a":1}`))}, {"1", body(1, many(1, `{"a":2}`))}}, "two contents"},
		"two bodies":   {[][2]string{{"1", body(1, nil, good)}, {"1", body(2, nil, good)}}, "two bodies"},
		"empty":        {[][2]string{{"1", body(1, nil)}}, "is empty"},
		"many EDUs":    {[][2]string{{"1", body(1, nil, many(101, good)...)}}, "101 EDUs"},
		"many PDUs":    {[][2]string{{"1", body(1, many(51, `{}`))}}, "51 PDUs"},
		"large EDU":    {[][2]string{{"1", body(1, nil, message("large", `{"@b:there":{"A":{"a":"`+large+`"},"B":{}}}`))}}, "2 messages in an EDU of"},
		"long message_id": {[][2]string{
			{"1", body(1, nil, message(strings.Repeat("x", 33), one))},
		}, "33 characters"},
		"no message_id":      {[][2]string{{"1", body(1, nil, message("", one))}}, "0 characters"},
		"message_id used up": {[][2]string{{"1", body(1, nil, good)}, {"2", body(1, nil, message("good", `{"@b:there":{"DEVICE":{"n":2}}}`))}}, "stands for two EDUs"},
		"other server":       {[][2]string{{"1", body(1, nil, message("x", `{"@b:elsewhere":{"DEVICE":{}}}`))}}, "a message for @b:elsewhere"},
		"no messages":        {[][2]string{{"1", body(1, nil, message("x", `{"@b:there":{}}`))}}, "no messages"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRules("there")
			for _, x := range test.transactions {
				parsed, err := parseTransaction("here", x[0], []byte(x[1]))
				if err != nil {
					t.Fatal(err)
				}
				r.check(parsed)
			}
			found := ""
			if err := errors.Join(r.faults...); err != nil {
				found = err.Error()
			}
			if (test.want == "") != (found == "") || !strings.Contains(found, test.want) {
				t.Errorf("want a fault with %q, got %.1000q", test.want, found)
			}
		})
	}
}
