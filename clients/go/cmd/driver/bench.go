package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	ister "ister.example/go"
)

// batchMost is how many messages one call may take together; what came together is rarely as many.
const batchMost = 1 << 16

// measurement has the arguments of the commands that measure: "messages" and "batch" are numbers here.
type measurement struct {
	Producer     string `json:"producer"`
	Consumer     string `json:"consumer"`
	Messages     int    `json:"messages"`
	MessageBytes int    `json:"message_bytes"`
	Batch        any    `json:"batch"`
}

// together says how many messages a batch call has; 0 for one call a message.
func (m *measurement) together() int {
	switch batch := m.Batch.(type) {
	case bool:
		if batch {
			return batchMost
		}
	case float64:
		return int(batch)
	}
	return 0
}

// measure runs a loop as a program would write it, and says how long it took.
func (d *driver) measure(ctx context.Context, do string, line []byte) (object, error) {
	var m measurement
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, err
	}
	producer := d.producers[m.Producer]
	consumer, _ := d.consumers[m.Consumer].(*ister.Consumer)
	if (producer == nil && do != "bench_receive") || (consumer == nil && do != "bench_publish") {
		return nil, errName
	}
	payload := make([]byte, m.MessageBytes)
	switch do {
	case "bench_publish":
		return benchPublish(ctx, producer, payload, m.Messages, m.together())
	case "bench_receive":
		return benchReceive(ctx, consumer, m.Messages, m.together())
	case "bench_round_trips":
		return benchRoundTrips(ctx, producer, consumer, payload, m.Messages)
	}
	return nil, errUnknown
}

func benchPublish(ctx context.Context, producer *ister.Producer, payload []byte, messages, batch int) (object, error) {
	began := time.Now()
	if batch > 0 {
		for first := 0; first < messages; first += batch {
			together := make([][]byte, min(batch, messages-first))
			for i := range together {
				together[i] = payload
			}
			if _, err := producer.SendPayloads(ctx, together); err != nil {
				return nil, err
			}
		}
	} else {
		for range messages {
			if _, err := producer.Send(ctx, ister.Outgoing{Payload: payload}); err != nil {
				return nil, err
			}
		}
	}
	if err := producer.Flush(ctx); err != nil {
		return nil, err
	}
	return object{"seconds": time.Since(began).Seconds()}, nil
}

func benchReceive(ctx context.Context, consumer *ister.Consumer, messages, batch int) (object, error) {
	var began time.Time
	count, size := 0, 0
	for count < messages {
		if batch > 0 {
			came, err := consumer.ReceiveTogether(ctx, batch)
			if err != nil {
				return nil, err
			}
			if count == 0 {
				began = time.Now()
			}
			for payload := range came.Payloads() {
				size += len(payload)
			}
			count += came.Len()
			if err := consumer.AckBatch(came); err != nil {
				return nil, err
			}
			continue
		}
		message, err := consumer.Receive(ctx)
		if err != nil {
			return nil, err
		}
		if count == 0 {
			began = time.Now()
		}
		if message.Attempt < 1 || message.Offset == ^uint64(0) {
			return nil, fmt.Errorf("the message at offset %d came at attempt %d", message.Offset, message.Attempt)
		}
		size += len(message.Payload)
		count++
		if err := consumer.Ack(message); err != nil {
			return nil, err
		}
	}
	if err := consumer.Flush(ctx); err != nil {
		return nil, err
	}
	return object{"seconds": time.Since(began).Seconds(), "bytes": size}, nil
}

func benchRoundTrips(
	ctx context.Context, producer *ister.Producer, consumer *ister.Consumer, payload []byte, messages int,
) (object, error) {
	took := make([]time.Duration, messages)
	for i := range took {
		began := time.Now()
		if _, err := producer.Send(ctx, ister.Outgoing{Payload: payload}); err != nil {
			return nil, err
		}
		message, err := consumer.Receive(ctx)
		if err != nil {
			return nil, err
		}
		took[i] = time.Since(began)
		if err := consumer.Ack(message); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	us := func(each time.Duration) float64 { return float64(each.Nanoseconds()) / 1000 }
	return object{"p50_us": us(took[len(took)/2]), "p99_us": us(took[len(took)*99/100])}, nil
}
