package ister

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// What every client decodes the same; a checkout has the vectors, a module alone has not.
func vectors(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "tests", "vectors", name))
	if err != nil {
		t.Skipf("no test vectors here: %v", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func TestHeadersOfABrokerAreReadOrRefusedAsTheVectorsSay(t *testing.T) {
	var all []struct {
		Name   string
		Frames []string
		Error  string
	}
	vectors(t, "headers-to-client.json", &all)
	for _, vector := range all {
		frame, _ := hex.DecodeString(vector.Frames[0])
		h, err := decodeHeader(frame)
		if err == nil && h.uint(kType) < tWelcome {
			continue // right in itself, and refused by the session
		}
		if (err != nil) != (vector.Error != "") {
			t.Errorf("%s: %v, and the vector says %q", vector.Name, err, vector.Error)
		}
	}
}

func TestNamesMakeTheIdsThatTheVectorsSay(t *testing.T) {
	var all []struct{ Topic, Producer, ID string }
	vectors(t, "producer-ids.json", &all)
	for _, vector := range all {
		if id := ProducerID(vector.Topic, vector.Producer); jsonNumber(id) != vector.ID {
			t.Errorf("%s of %s is %d, not %s", vector.Producer, vector.Topic, id, vector.ID)
		}
	}
}

func jsonNumber(id uint64) string { data, _ := json.Marshal(id); return string(data) }

func TestABatchComesApartAsItWasPutTogether(t *testing.T) {
	messages := []content{
		{payload: []byte("a"), key: []byte("k")},
		{payload: []byte{}},
		{payload: []byte("c"), attributes: map[string]string{"größe": "ü"}, deliverAt: 7},
	}
	for i := range messages {
		if len(messages[i].attributes) > 0 {
			messages[i].encoded = encode(messages[i].attributes)
		}
	}
	columns, body := packBatch(messages)
	for i := range messages {
		messages[i].encoded = nil
	}
	found, err := cutBatch(columns, len(messages), body)
	if err != nil || !reflect.DeepEqual(found, messages) {
		t.Fatalf("%v, %v", found, err)
	}
}

func TestLengthsThatDoNotAddUpAreRefused(t *testing.T) {
	for name, body := range map[string][][]byte{
		"too small":        {{1, 0, 0, 0}, []byte("ab")},
		"too large":        {{3, 0, 0, 0}, []byte("ab")},
		"cut short":        {{3, 0}, []byte("ab")},
		"more than memory": {{255, 255, 255, 255}, []byte("ab")},
	} {
		if _, err := cutBatch(0, 1, body); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := cutBatch(columnKeys, 2, [][]byte{make([]byte, 8), {}, {0, 0, 0, 0}}); err == nil {
		t.Error("a column with too few lengths: taken")
	}
}
