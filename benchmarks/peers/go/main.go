// The clients of NATS and RabbitMQ for the comparison with peers: one process that publishes, one that consumes.
//
//	driver SYSTEM ROLE ADDRESS TOPIC MESSAGES BYTES RATE
//
// What is printed and read is described in ../README.md. Times are CLOCK_MONOTONIC in nanoseconds, the same clock in
// every process of a machine.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type load struct {
	address, topic string
	messages, size int
	rate           float64
}

// A system's client: how it publishes without waiting, and how it takes messages.
type client interface {
	// publish sends one message and calls done when it is as durable as the system promises; nil: nobody asks.
	publish(payload []byte, done func()) error
	// flush returns when everything has been answered.
	flush() error
	// consume calls take for each message until it returns false, and acknowledges.
	consume(count int, ready func(), take func(payload []byte) bool) error
	// remove deletes the topic and what is in it.
	remove() error
	close()
}

func now() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func say(told any) {
	text, err := json.Marshal(told)
	fail(err)
	fmt.Println(string(text))
}

func waitForGo() {
	say("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		os.Exit(1)
	}
}

func publish(to client, with load) {
	payload := make([]byte, with.size)
	waitForGo()
	began := now()
	for i := 0; i < with.messages; i++ {
		fail(to.publish(payload, nil))
	}
	fail(to.flush())
	say(map[string]any{"began": began, "ended": now()})
}

func lone(to client, with load) {
	payload := make([]byte, with.size)
	took := make([]int64, 0, with.messages)
	answered := make(chan struct{}, 1)
	waitForGo()
	began := now()
	last := began
	for i := 0; i < with.messages; i++ {
		fail(to.publish(payload, func() { answered <- struct{}{} }))
		<-answered
		at := now()
		took = append(took, at-last)
		last = at
	}
	say(map[string]any{"began": began, "ended": last, "took": took})
}

// Sends each message when it is due, and measures from then: what is held up counts for all that wait behind it.
func paced(to client, with load) {
	var lock sync.Mutex
	took := make([]int64, 0, with.messages)
	var all sync.WaitGroup
	waitForGo()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	began := now() + 1_000_000
	for i := 0; i < with.messages; i++ {
		due := began + int64(float64(i)*1e9/with.rate)
		if wait := due - now() - 80_000; wait > 0 {
			time.Sleep(time.Duration(wait))
		}
		for now() < due {
		}
		payload := make([]byte, with.size)
		binary.LittleEndian.PutUint64(payload, uint64(due))
		all.Add(1)
		fail(to.publish(payload, func() {
			lock.Lock()
			took = append(took, now()-due)
			lock.Unlock()
			all.Done()
		}))
	}
	fail(to.flush())
	all.Wait()
	say(map[string]any{"took": took})
}

func consume(from client, with load) {
	count, bytes, ended := 0, 0, int64(0)
	took := make([]int64, 0, with.messages)
	err := from.consume(with.messages, func() { say("ready") }, func(payload []byte) bool {
		count++
		bytes += len(payload)
		if with.rate > 0 {
			took = append(took, now()-int64(binary.LittleEndian.Uint64(payload)))
		}
		if count == with.messages {
			ended = now() // what follows is the end of the connection, not of the messages
		}
		return count < with.messages
	})
	fail(err)
	say(map[string]any{"messages": count, "bytes": bytes, "ended": ended, "took": took})
}

func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	fail(err)
	return value
}

func main() {
	if len(os.Args) != 8 {
		fmt.Fprintln(os.Stderr, "usage: driver SYSTEM ROLE ADDRESS TOPIC MESSAGES BYTES RATE")
		os.Exit(2)
	}
	with := load{os.Args[3], os.Args[4], int(number(os.Args[5])), int(number(os.Args[6])), number(os.Args[7])}
	openers := map[string]func(load, bool) (client, error){
		"nats": openCore, "jetstream": openJetStream, "rabbitmq-stream": openStream, "rabbitmq-quorum": openQuorum,
	}
	open, known := openers[os.Args[1]]
	if !known {
		fmt.Fprintln(os.Stderr, "there is no system "+os.Args[1])
		os.Exit(2)
	}
	consumes := os.Args[2] == "consume"
	one, err := open(with, consumes)
	fail(err)
	defer one.close()
	switch os.Args[2] {
	case "publish":
		publish(one, with)
	case "lone":
		lone(one, with)
	case "paced":
		paced(one, with)
	case "consume":
		consume(one, with)
	case "remove":
		fail(one.remove())
	default:
		fmt.Fprintln(os.Stderr, "there is no role "+os.Args[2])
		os.Exit(2)
	}
}
