package main

import (
	"context"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"
	streamamqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/message"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"
)

// RabbitMQ's stream: a log in the page cache, over its own protocol, with confirmations.
type streamClient struct {
	environment *stream.Environment
	producer    *stream.Producer
	topic       string
	sent        int64
	confirmed   atomic.Int64
	room        chan struct{}
	mutex       sync.Mutex
	waiting     []func()
}

const (
	unconfirmedMax = 20_000
	socketBytes    = 4 << 20 // the client's own 8 KiB is less than a segment of the loopback interface: 80 KB a second
)

func openStream(with load, consumes bool) (client, error) {
	address, err := url.Parse(with.address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		return nil, err
	}
	environment, err := stream.NewEnvironment(stream.NewEnvironmentOptions().SetHost(address.Hostname()).SetPort(port).
		SetReadBuffer(socketBytes).SetWriteBuffer(socketBytes))
	if err != nil {
		return nil, err
	}
	c := &streamClient{environment: environment, topic: with.topic, room: make(chan struct{}, unconfirmedMax)}
	if consumes || with.rate < 0 {
		if err := environment.DeclareStream(with.topic, stream.NewStreamOptions()); err != nil {
			return nil, err
		}
	}
	if !consumes {
		c.producer, err = environment.NewProducer(with.topic, stream.NewProducerOptions().SetBatchSize(500))
		if err != nil {
			return nil, err
		}
		go c.confirm(c.producer.NotifyPublishConfirmation())
	}
	return c, nil
}

func (c *streamClient) confirm(confirmations stream.ChannelPublishConfirm) {
	for all := range confirmations {
		for _, one := range all {
			if !one.IsConfirmed() {
				fail(one.GetError())
			}
			c.mutex.Lock()
			var done func()
			if len(c.waiting) > 0 {
				done, c.waiting = c.waiting[0], c.waiting[1:]
			}
			c.mutex.Unlock()
			if done != nil {
				done()
			}
			c.confirmed.Add(1)
			<-c.room
		}
	}
}

func (c *streamClient) publish(payload []byte, done func()) error {
	c.room <- struct{}{}
	c.sent++
	if done != nil {
		c.mutex.Lock()
		c.waiting = append(c.waiting, done)
		c.mutex.Unlock()
		return c.producer.BatchSend([]message.StreamMessage{streamamqp.NewMessage(payload)})
	}
	return c.producer.Send(streamamqp.NewMessage(payload))
}

func (c *streamClient) flush() error {
	for i := 0; i < unconfirmedMax; i++ { // all of the room is free when everything is confirmed
		c.room <- struct{}{}
	}
	for i := 0; i < unconfirmedMax; i++ {
		<-c.room
	}
	return nil
}

func (c *streamClient) consume(count int, ready func(), take func([]byte) bool) error {
	end := make(chan struct{})
	over := false
	_, err := c.environment.NewConsumer(c.topic, func(_ stream.ConsumerContext, message *streamamqp.Message) {
		if !over && !take(message.GetData()) {
			over = true
			close(end)
		}
	}, stream.NewConsumerOptions().SetConsumerName("bench").SetOffset(stream.OffsetSpecification{}.First()).SetInitialCredits(200).
		SetAutoCommit(stream.NewAutoCommitStrategy().SetCountBeforeStorage(10_000)))
	if err != nil {
		return err
	}
	ready()
	<-end
	return nil
}

func (c *streamClient) remove() error { return c.environment.DeleteStream(c.topic) }

func (c *streamClient) close() { _ = c.environment.Close() }

// RabbitMQ's quorum queue: each message in a replicated log that is synced, here with one member.
type quorum struct {
	connection *amqp.Connection
	channel    *amqp.Channel
	topic      string
	all        sync.WaitGroup
	room       chan struct{}
}

const quorumUnconfirmedMax = 2000

func openQuorum(with load, consumes bool) (client, error) {
	connection, err := amqp.Dial(with.address)
	if err != nil {
		return nil, err
	}
	channel, err := connection.Channel()
	if err != nil {
		return nil, err
	}
	_, err = channel.QueueDeclare(with.topic, true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	if err != nil {
		return nil, err
	}
	if consumes {
		err = channel.Qos(2000, 0, false)
	} else {
		err = channel.Confirm(false)
	}
	return &quorum{connection: connection, channel: channel, topic: with.topic,
		room: make(chan struct{}, quorumUnconfirmedMax)}, err
}

func (q *quorum) publish(payload []byte, done func()) error {
	q.room <- struct{}{}
	confirmation, err := q.channel.PublishWithDeferredConfirmWithContext(context.Background(), "", q.topic, false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: payload})
	if err != nil {
		return err
	}
	q.all.Add(1)
	go func() {
		if !confirmation.Wait() {
			fail(amqp.ErrClosed)
		}
		if done != nil {
			done()
		}
		<-q.room
		q.all.Done()
	}()
	return nil
}

func (q *quorum) flush() error {
	q.all.Wait()
	return nil
}

func (q *quorum) consume(_ int, ready func(), take func([]byte) bool) error {
	deliveries, err := q.channel.Consume(q.topic, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	ready()
	count := 0
	for delivery := range deliveries {
		count++
		more := take(delivery.Body)
		if count%100 == 0 || !more {
			if err := delivery.Ack(true); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
	return amqp.ErrClosed
}

func (q *quorum) remove() error {
	_, err := q.channel.QueueDelete(q.topic, false, false, false)
	return err
}

func (q *quorum) close() { _ = q.connection.Close() }
