package ister

import (
	"encoding/hex"
	"net"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	zmq "github.com/pebbe/zmq4"
)

// What the libraries do that one would not expect, and the guards against it: see docs/languages.md.

func TestWhatTheLibraryTakesAndTheProtocolRefusesIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"a key twice":           "a3001829010101" + "02",
		"an indefinite map":     "bf001829ff",
		"an indefinite list":    "a2001829190fa09f01ff",
		"a tag":                 "a2001829190fa0c101",
		"a bignum":              "a200182901c24101",
		"a float for a number":  "a200182901f93c00",
		"undefined":             "a200182901f7",
		"a simple value":        "a200182901e0",
		"a list for some bytes": "a200182914" + "83010203",
	} {
		frame, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		var taken map[uint64]any
		if err := cbor.Unmarshal(frame, &taken); err != nil {
			t.Errorf("%s: the library refuses it by itself now: %v", name, err)
		}
		if _, err := decodeHeader(frame); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestWhatHoldsNothingIsWrittenEmptyAndNotAsNull(t *testing.T) {
	var nothing []uint64
	if data, err := cbor.Marshal(nothing); err != nil || hex.EncodeToString(data) != "f6" {
		t.Errorf("the library writes %x now, %v", data, err)
	}
	if data := hex.EncodeToString(encode(header{kRanges: nothing})); data != "a10d80" {
		t.Errorf("no ranges are %s", data)
	}
	var missing map[string]string
	if data := encode(missing); hex.EncodeToString(data) != "a0" {
		t.Errorf("no attributes are %x", data)
	}
}

// libzmq's own thread waits for ever where it has something to tell a monitor whose reader is gone: then no socket of
// the context connects, sends or receives again.
func TestSocketsThatAreClosedWhileThingsHappenToThemStopNoOther(t *testing.T) {
	context, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // hangs up on everybody
		for {
			who, err := rude.Accept()
			if err != nil {
				return
			}
			_ = who.Close()
		}
	}()
	dial := func(endpoint string) *connection {
		client := &Client{context: context}
		c := &connection{client: client, endpoints: []string{endpoint}, session: newSession("test", &client.refs)}
		if err := c.connect(time.Now()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for round := range 400 {
		c := dial("tcp://" + rude.Addr().String())
		time.Sleep(time.Duration(round%20*100) * time.Microsecond)
		c.closeSocket(0)
	}
	_ = rude.Close()
	broker, err := context.NewSocket(zmq.ROUTER)
	if err != nil {
		t.Fatal(err)
	}
	_ = broker.SetLinger(0)
	_ = broker.SetRcvtimeo(30 * time.Second)
	if err := broker.Bind("tcp://127.0.0.1:*"); err != nil {
		t.Fatal(err)
	}
	endpoint, _ := broker.GetLastEndpoint()
	c := dial(endpoint)
	if _, err := c.socket.SendBytes([]byte("still there"), zmq.DONTWAIT); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.RecvMessageBytes(0); err != nil {
		t.Fatalf("nothing arrives any more: %v", err) // and the context is left as it is: its end would not come
	}
	c.closeSocket(0)
	_ = broker.Close()
	_ = context.Term()
}
