package main

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS core: messages in memory, for those who listen. Nothing answers a message, so what is awaited is a flush. At a
// given rate there is none: it would be a second message for each, and the runner shows no receipts there.
type core struct {
	connection *nats.Conn
	topic      string
	paced      bool
}

func openCore(with load, _ bool) (client, error) {
	connection, err := nats.Connect(with.address)
	return &core{connection, with.topic, with.rate > 0}, err
}

func (c *core) publish(payload []byte, done func()) error {
	if err := c.connection.Publish(c.topic, payload); err != nil || done == nil {
		return err
	}
	if !c.paced {
		if err := c.connection.Flush(); err != nil {
			return err
		}
	}
	done()
	return nil
}

func (c *core) flush() error { return c.connection.Flush() }

func (c *core) consume(_ int, ready func(), take func([]byte) bool) error {
	end := make(chan struct{})
	over := false
	subscription, err := c.connection.Subscribe(c.topic, func(message *nats.Msg) {
		if !over && !take(message.Data) {
			over = true
			close(end)
		}
	})
	if err != nil {
		return err
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	if err := c.connection.Flush(); err != nil {
		return err
	}
	ready()
	<-end
	return nil
}

func (c *core) remove() error { return nil }

func (c *core) close() { c.connection.Close() }

// JetStream: a stream in files with one replica, published without waiting for each answer.
type jetStream struct {
	connection *nats.Conn
	stream     jetstream.JetStream
	topic      string
}

const pendingMax = 4096

func openJetStream(with load, consumes bool) (client, error) {
	connection, err := nats.Connect(with.address)
	if err != nil {
		return nil, err
	}
	stream, err := jetstream.New(connection, jetstream.WithPublishAsyncMaxPending(pendingMax))
	if err != nil {
		return nil, err
	}
	if consumes || with.rate < 0 {
		_, err = stream.CreateOrUpdateStream(context.Background(), jetstream.StreamConfig{
			Name: with.topic, Subjects: []string{with.topic}, Storage: jetstream.FileStorage,
		})
	}
	return &jetStream{connection, stream, with.topic}, err
}

func (j *jetStream) publish(payload []byte, done func()) error {
	// with fsync a full window takes longer than the 200 ms after which the call gives up by itself
	answer, err := j.stream.PublishAsync(j.topic, payload, jetstream.WithStallWait(time.Minute))
	if err != nil || done == nil {
		return err
	}
	go func() {
		select {
		case <-answer.Ok():
			done()
		case err := <-answer.Err():
			fail(err)
		}
	}()
	return nil
}

func (j *jetStream) flush() error {
	<-j.stream.PublishAsyncComplete()
	return nil
}

func (j *jetStream) consume(_ int, ready func(), take func([]byte) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// one acknowledgment for all before it is the fewest that a consumer of this system can send
	consumer, err := j.stream.CreateOrUpdateConsumer(ctx, j.topic, jetstream.ConsumerConfig{
		Durable: "bench", AckPolicy: jetstream.AckAllPolicy, MaxAckPending: -1,
	})
	if err != nil {
		return err
	}
	end := make(chan struct{})
	over, count := false, 0
	running, err := consumer.Consume(func(message jetstream.Msg) {
		if over {
			return
		}
		count++
		more := take(message.Data())
		if count%100 == 0 || !more {
			fail(message.Ack())
		}
		if !more {
			over = true
			close(end)
		}
	}, jetstream.PullMaxMessages(5000))
	if err != nil {
		return err
	}
	ready()
	<-end
	running.Stop()
	return j.connection.Flush()
}

func (j *jetStream) remove() error { return j.stream.DeleteStream(context.Background(), j.topic) }

func (j *jetStream) close() { j.connection.Close() }
