// The driver of the Go client; tests/conformance_clients/DRIVER.md says how one works.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	ister "ister.example/go"
)

var capabilities = []string{
	"batch", "pipeline", "keys", "attributes", "delivery-time", "timestamps", "attempts", "named-producer",
	"batch-receive", "confirm", "nack", "ack-until", "extend", "reader", "seek", "priority", "force", "options",
	"credit", "window", "events", "admin", "request-reply", "moved", "reconnect", "heartbeat", "orderly-close",
	"cancel", "drop", "codec", "bench", "taken", "patterns", "dead-letters",
}

type message struct {
	Payload     string            `json:"payload"`
	Key         *string           `json:"key,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	DeliverAtMs *int64            `json:"deliver_at_ms,omitempty"`
	Sequence    *uint64           `json:"sequence,omitempty"`
}

// asked is what every command has.
type asked struct {
	ID            int64  `json:"id"`
	Do            string `json:"do"`
	TimeoutMs     *int64 `json:"timeout_ms"`
	CancelAfterMs *int64 `json:"cancel_after_ms"`
}

// command has the arguments of all commands but those that measure.
type command struct {
	asked
	Client         *string           `json:"client"`
	Producer       *string           `json:"producer"`
	Consumer       *string           `json:"consumer"`
	Receipt        string            `json:"receipt"`
	Endpoints      []string          `json:"endpoints"`
	Topic          string            `json:"topic"`
	Subscription   string            `json:"subscription"`
	Type           string            `json:"type"`
	Name           string            `json:"name"`
	WindowBytes    int               `json:"window_bytes"`
	Start          any               `json:"start"`
	To             any               `json:"to"`
	Priority       int               `json:"priority"`
	Force          bool              `json:"force"`
	CreditMessages int               `json:"credit_messages"`
	Options        map[string]any    `json:"options"`
	Operation      string            `json:"operation"`
	Arguments      map[string]any    `json:"arguments"`
	Message        message           `json:"message"`
	Messages       []message         `json:"messages"`
	Max            *int              `json:"max"`
	Batch          bool              `json:"batch"`
	Offset         uint64            `json:"offset"`
	Offsets        []uint64          `json:"offsets"`
	DelayMs        *int64            `json:"delay_ms"`
	Reason         string            `json:"reason"`
	Payload        string            `json:"payload"`
	Attributes     map[string]string `json:"attributes"`
	Frame          string            `json:"frame"`
	Frames         []string          `json:"frames"`
	Columns        uint64            `json:"columns"`
}

type object = map[string]any

type receiver interface {
	Receive(context.Context) (*ister.Message, error)
	ReceiveBatch(context.Context, int) ([]*ister.Message, error)
	Events() []ister.Event
	Close(context.Context) error
}

type acknowledger interface {
	receiver
	Ack(messages ...*ister.Message) error
	AckUntil(message *ister.Message) error
	Nack(reason string, messages ...*ister.Message) error
	NackAfter(delay time.Duration, reason string, messages ...*ister.Message) error
	Extend(messages ...*ister.Message) error
	Flush(ctx context.Context) error
}

// place is where a message that is held came from.
type place struct {
	topic  string
	offset uint64
}

type driver struct {
	clients   map[string]*ister.Client
	producers map[string]*ister.Producer
	consumers map[string]receiver
	receipts  map[string]*ister.Receipt
	of        map[string]*ister.Client // a consumer's client
	held      map[string]map[place]*ister.Message
	late      map[string]error
}

var (
	errUnknown = errors.New("this driver does not know it")
	errName    = errors.New("nothing has this name")
)

func unhex(text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return data
}

func start(place any) (ister.Start, error) {
	switch place := place.(type) {
	case nil:
		return ister.Start{}, nil
	case string:
		switch {
		case place == "earliest":
			return ister.Earliest(), nil
		case place == "latest":
			return ister.Latest(), nil
		case strings.HasPrefix(place, "time:"):
			ms, err := strconv.ParseInt(place[5:], 10, 64)
			return ister.AtTime(time.UnixMilli(ms)), err
		}
	case uint64:
		return ister.AtOffset(place), nil
	}
	return ister.Start{}, fmt.Errorf("%v is no place", place)
}

func outgoing(m message) ister.Outgoing {
	made := ister.Outgoing{Payload: unhex(m.Payload), Attributes: m.Attributes, Sequence: m.Sequence}
	if m.Key != nil {
		made.Key = unhex(*m.Key)
	}
	if m.DeliverAtMs != nil && *m.DeliverAtMs > 0 {
		made.DeliverAt = time.UnixMilli(*m.DeliverAtMs)
	}
	return made
}

func outgoings(messages []message) []ister.Outgoing {
	made := make([]ister.Outgoing, len(messages))
	for i, each := range messages {
		made[i] = outgoing(each)
	}
	return made
}

func shown(m *ister.Message) object {
	told := object{
		"topic": m.Topic, "offset": m.Offset, "payload": hex.EncodeToString(m.Payload), "key": nil,
		"attributes": m.Attributes, "timestamp_ms": m.Timestamp.UnixMilli(), "deliver_at_ms": nil, "attempt": m.Attempt,
	}
	if m.Key != nil {
		told["key"] = hex.EncodeToString(m.Key)
	}
	if m.Attributes == nil {
		told["attributes"] = object{}
	}
	if !m.DeliverAt.IsZero() {
		told["deliver_at_ms"] = m.DeliverAt.UnixMilli()
	}
	return told
}

// inNotation writes a decoded value as tests/vectors/README.md says.
func inNotation(value any) any {
	const exact = 1<<53 - 1
	switch value := value.(type) {
	case uint64:
		if value > exact {
			return object{"uint": strconv.FormatUint(value, 10)}
		}
	case int64:
		if value < -exact {
			return object{"nint": strconv.FormatInt(value, 10)}
		}
	case float64:
		return object{"float": strconv.FormatFloat(value, 'g', -1, 64)}
	case []byte:
		return object{"bytes": hex.EncodeToString(value)}
	case []uint64:
		all := make([]any, len(value))
		for i, each := range value {
			all[i] = inNotation(each)
		}
		return all
	case []any:
		all := make([]any, len(value))
		for i, each := range value {
			all[i] = inNotation(each)
		}
		return all
	case map[any]any:
		all := object{}
		for key, each := range value {
			all[fmt.Sprint(key)] = inNotation(each)
		}
		return all
	case map[uint64]any:
		all := object{}
		for key, each := range value {
			all[fmt.Sprint(key)] = inNotation(each)
		}
		return all
	}
	return value
}

// inJSON writes what a broker answered so that JSON can hold it.
func inJSON(value any) any {
	switch value := value.(type) {
	case []byte:
		return hex.EncodeToString(value)
	case []any:
		all := make([]any, len(value))
		for i, each := range value {
			all[i] = inJSON(each)
		}
		return all
	case map[any]any:
		all := object{}
		for key, each := range value {
			all[fmt.Sprint(key)] = inJSON(each)
		}
		return all
	case float64:
		if math.IsNaN(value) || math.IsInf(value, 0) {
			return nil
		}
	}
	return value
}

func (d *driver) do(ctx context.Context, c *command) (object, error) {
	switch c.Do {
	case "hello":
		return object{
			"protocol": 1, "language": "go", "client": "ister-go/" + ister.Version, "capabilities": capabilities,
		}, nil
	case "connect":
		client, err := ister.Connect(ctx, nil, c.Endpoints...)
		if err == nil {
			d.clients[*c.Client] = client
		}
		return nil, err
	case "close":
		return nil, d.close(ctx, c)
	case "decode", "decode_batch", "encode_batch", "producer_id":
		return codec(c)
	case "publish", "publish_batch", "receipt", "flush":
		return d.publishing(ctx, c)
	}
	if c.Client != nil {
		client := d.clients[*c.Client]
		if client == nil {
			return nil, errName
		}
		return d.withClient(ctx, c, client)
	}
	if c.Consumer != nil {
		if d.consumers[*c.Consumer] == nil {
			return nil, errName
		}
		return d.withConsumer(ctx, c, d.consumers[*c.Consumer])
	}
	return nil, errUnknown
}

func (d *driver) close(ctx context.Context, c *command) error {
	switch {
	case c.Client != nil:
		client := d.clients[*c.Client]
		delete(d.clients, *c.Client)
		if client == nil {
			return errName
		}
		return client.Close()
	case c.Producer != nil:
		producer := d.producers[*c.Producer]
		delete(d.producers, *c.Producer)
		if producer == nil {
			return errName
		}
		return producer.Close(ctx)
	case c.Consumer != nil:
		consumer := d.consumers[*c.Consumer]
		delete(d.consumers, *c.Consumer)
		delete(d.held, *c.Consumer)
		delete(d.late, *c.Consumer)
		if consumer == nil {
			return errName
		}
		return consumer.Close(ctx)
	}
	return errUnknown
}

func codec(c *command) (object, error) {
	body := make([][]byte, len(c.Frames))
	for i, frame := range c.Frames {
		body[i] = unhex(frame)
	}
	switch c.Do {
	case "decode":
		header, err := ister.Codec.Header(unhex(c.Frame))
		if err != nil {
			return nil, err
		}
		return object{"header": inNotation(header)}, nil
	case "decode_batch":
		messages, err := ister.Codec.Cut(c.Columns, body)
		if err != nil {
			return nil, err
		}
		told := make([]object, len(messages))
		for i, each := range messages {
			told[i] = object{"payload": hex.EncodeToString(each.Payload)}
			if each.Key != nil {
				told[i]["key"] = hex.EncodeToString(each.Key)
			}
			if len(each.Attributes) > 0 {
				told[i]["attributes"] = each.Attributes
			}
			if !each.DeliverAt.IsZero() {
				told[i]["deliver_at_ms"] = each.DeliverAt.UnixMilli()
			}
		}
		return object{"messages": told}, nil
	case "encode_batch":
		columns, frames := ister.Codec.Pack(outgoings(c.Messages))
		told := make([]string, len(frames))
		for i, frame := range frames {
			told[i] = hex.EncodeToString(frame)
		}
		return object{"columns": columns, "frames": told}, nil
	}
	return object{"id": strconv.FormatUint(ister.ProducerID(c.Topic, c.Name), 10)}, nil
}

func (d *driver) publishing(ctx context.Context, c *command) (object, error) {
	if c.Do == "receipt" {
		receipt := d.receipts[c.Receipt]
		if receipt == nil {
			return nil, errName
		}
		published, err := receipt.Wait(ctx)
		if ctx.Err() == nil || err == nil || !errors.Is(err, ctx.Err()) {
			delete(d.receipts, c.Receipt)
		}
		if err != nil {
			return nil, err
		}
		told := object{"offset": published.Offset, "count": published.Count, "duplicate": published.Duplicate}
		if published.Offset < 0 {
			told["offset"] = nil
		}
		return told, nil
	}
	if c.Do == "flush" && c.Consumer != nil {
		consumer, ok := d.consumers[*c.Consumer].(acknowledger)
		if !ok {
			return nil, errName
		}
		return nil, consumer.Flush(ctx)
	}
	if c.Producer == nil || d.producers[*c.Producer] == nil {
		return nil, errName
	}
	producer := d.producers[*c.Producer]
	var receipt *ister.Receipt
	var err error
	switch c.Do {
	case "flush":
		return nil, producer.Flush(ctx)
	case "publish":
		receipt, err = producer.Send(ctx, outgoing(c.Message))
	case "publish_batch":
		receipt, err = producer.SendBatch(ctx, outgoings(c.Messages))
	}
	if err == nil {
		d.receipts[c.Receipt] = receipt
	}
	return nil, err
}

func (d *driver) withClient(ctx context.Context, c *command, client *ister.Client) (object, error) {
	switch c.Do {
	case "drop":
		client.Drop()
		return nil, nil
	case "admin":
		result, err := admin(ctx, c, client)
		return object{"result": result}, err
	case "events":
		told := []object{}
		for _, event := range client.Events() {
			told = append(told, object{"code": event.Code})
		}
		return object{"events": told}, nil
	case "producer":
		options := &ister.ProducerOptions{Name: c.Name, WindowBytes: c.WindowBytes}
		producer, err := client.Producer(ctx, c.Topic, options)
		if err != nil {
			return nil, err
		}
		d.producers[*c.Producer] = producer
		return object{"next_sequence": producer.NextSequence()}, nil
	case "consumer", "reader":
		place, err := start(c.Start)
		if err != nil {
			return nil, err
		}
		options := &ister.ConsumerOptions{
			Type: c.Type, Start: place, Priority: c.Priority, Force: c.Force, CreditMessages: c.CreditMessages,
			Options: c.Options, WaitForPlace: c.TimeoutMs != nil,
		}
		var opened receiver
		var position any
		if strings.ContainsAny(c.Topic, "*>") {
			consumer, err := client.PatternConsumer(ctx, c.Topic, c.Subscription, options)
			if err != nil {
				return nil, err
			}
			opened = consumer
		} else if c.Do == "reader" {
			reader, err := client.Reader(ctx, c.Topic, place, c.CreditMessages)
			if err != nil {
				return nil, err
			}
			opened, position = reader, reader.Position()
		} else {
			consumer, err := client.Consumer(ctx, c.Topic, c.Subscription, options)
			if err != nil {
				return nil, err
			}
			opened, position = consumer, consumer.Position()
		}
		d.consumers[*c.Consumer], d.of[*c.Consumer] = opened, client
		d.hold(*c.Consumer)
		return object{"position": position}, nil
	case "letters", "redrive", "purge":
		return d.letters(ctx, c, client)
	case "request":
		reply, err := client.Request(ctx, c.Topic, ister.Outgoing{Payload: unhex(c.Payload), Attributes: c.Attributes})
		if err != nil {
			return nil, err
		}
		return object{"message": shown(reply)}, nil
	}
	return nil, errUnknown
}

func (d *driver) hold(consumer string) { d.held[consumer] = map[place]*ister.Message{} }

func (d *driver) letters(ctx context.Context, c *command, client *ister.Client) (object, error) {
	letters := client.DeadLetters(c.Topic, c.Subscription)
	limit := 0
	if c.Max != nil {
		limit = *c.Max
	}
	switch c.Do {
	case "redrive", "purge":
		to, _ := c.To.(string)
		options := &ister.SettleOptions{Limit: limit, Offsets: c.Offsets, To: to}
		settle := letters.Redrive
		if c.Do == "purge" {
			settle = letters.Purge
		}
		messages, err := settle(ctx, options)
		return object{"messages": messages}, err
	}
	told := []object{}
	for letter, err := range letters.All(ctx) {
		if err != nil {
			return nil, err
		}
		each := object{
			"offset": letter.Offset, "payload": hex.EncodeToString(letter.Payload), "key": nil,
			"attributes": letter.Attributes, "topic": letter.Topic, "subscription": letter.Subscription,
			"origin_offset": letter.OriginOffset, "attempts": letter.Attempts, "reason": letter.Reason,
		}
		if letter.Key != nil {
			each["key"] = hex.EncodeToString(letter.Key)
		}
		if told = append(told, each); len(told) == limit {
			break
		}
	}
	return object{"letters": told}, nil
}

func (d *driver) withConsumer(ctx context.Context, c *command, consumer receiver) (object, error) {
	name := *c.Consumer
	held := d.held[name]
	switch c.Do {
	case "receive":
		return d.receive(ctx, c, consumer)
	case "events":
		told := []object{}
		for _, event := range consumer.Events() {
			each := object{"code": event.Code, "count": event.Count, "offset": nil, "text": event.Text}
			if event.Offset >= 0 {
				each["offset"] = event.Offset
			}
			told = append(told, each)
		}
		return object{"events": told}, nil
	}
	acknowledging, ok := consumer.(acknowledger)
	if !ok {
		return nil, errUnknown
	}
	topic := c.Topic
	if one, ok := consumer.(interface{ Topic() string }); ok {
		topic = one.Topic()
	}
	wanted := c.Offsets
	if c.Do == "ack_until" || c.Do == "reply" {
		wanted = []uint64{c.Offset}
	}
	messages := make([]*ister.Message, len(wanted))
	for i, offset := range wanted {
		if messages[i] = held[place{topic, offset}]; messages[i] == nil {
			return nil, errName
		}
	}
	switch c.Do {
	case "ack", "nack":
		for _, offset := range wanted {
			delete(held, place{topic, offset})
		}
		if c.Do == "ack" {
			return nil, acknowledging.Ack(messages...)
		}
		if c.DelayMs != nil {
			return nil, acknowledging.NackAfter(time.Duration(*c.DelayMs)*time.Millisecond, c.Reason, messages...)
		}
		return nil, acknowledging.Nack(c.Reason, messages...)
	case "extend":
		return nil, acknowledging.Extend(messages...)
	case "ack_until":
		for each := range held {
			if each.topic == topic && each.offset <= c.Offset {
				delete(held, each)
			}
		}
		return nil, acknowledging.AckUntil(messages[0])
	case "seek":
		place, err := start(c.To)
		if err != nil {
			return nil, err
		}
		moved, ok := consumer.(*ister.Consumer)
		if !ok {
			return nil, errUnknown
		}
		position, err := moved.Seek(ctx, place)
		return object{"position": position}, err
	case "reply":
		return nil, d.of[name].Reply(ctx, messages[0], ister.Outgoing{Payload: unhex(c.Payload), Attributes: c.Attributes})
	}
	return nil, errUnknown
}

func (d *driver) receive(ctx context.Context, c *command, consumer receiver) (object, error) {
	name, most := *c.Consumer, 1
	if c.Max != nil {
		most = *c.Max
	}
	if err := d.late[name]; err != nil {
		delete(d.late, name)
		return nil, err
	}
	taken := []object{}
	for len(taken) < most {
		var came []*ister.Message
		var err error
		if c.Batch {
			came, err = consumer.ReceiveBatch(ctx, most)
		} else {
			var one *ister.Message
			if one, err = consumer.Receive(ctx); err == nil {
				came = []*ister.Message{one}
			}
		}
		for _, each := range came {
			d.held[name][place{each.Topic, each.Offset}] = each
			taken = append(taken, shown(each))
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			if len(taken) == 0 {
				return nil, err
			}
			d.late[name] = err
		}
		if err != nil || c.Batch {
			break
		}
	}
	return object{"messages": taken}, nil
}

func admin(ctx context.Context, c *command, client *ister.Client) (any, error) {
	text := func(name string) string { value, _ := c.Arguments[name].(string); return value }
	topic, subscription := text("topic"), text("subscription")
	rest := object{}
	for name, value := range c.Arguments {
		if !slices.Contains([]string{"topic", "subscription", "type", "start", "to", "action"}, name) {
			rest[name] = value
		}
	}
	listed := func(name string, infos []ister.Info, err error) (any, error) {
		all := make([]any, len(infos))
		for i, each := range infos {
			all[i] = members(each)
		}
		return object{name: all}, err
	}
	one := func(info ister.Info, err error) (any, error) { return members(info), err }
	switch c.Operation {
	case "topic.create":
		return one(client.CreateTopic(ctx, topic, rest))
	case "topic.update":
		return one(client.UpdateTopic(ctx, topic, rest))
	case "topic.show":
		return one(client.Topic(ctx, topic))
	case "topic.list":
		infos, err := client.Topics(ctx)
		return listed("topics", infos, err)
	case "topic.delete":
		return object{}, client.DeleteTopic(ctx, topic)
	case "subscription.create":
		place, err := start(c.Arguments["start"])
		if err != nil {
			return nil, err
		}
		return one(client.CreateSubscription(ctx, topic, subscription, text("type"), place, rest))
	case "subscription.update":
		return one(client.UpdateSubscription(ctx, topic, subscription, rest))
	case "subscription.show":
		return one(client.Subscription(ctx, topic, subscription))
	case "subscription.list":
		infos, err := client.Subscriptions(ctx, topic)
		return listed("subscriptions", infos, err)
	case "subscription.explain":
		return one(client.Explain(ctx, topic, subscription))
	case "subscription.unblock":
		messages, err := client.Unblock(ctx, topic, subscription, text("action"))
		return object{"messages": messages}, err
	case "subscription.seek":
		place, err := start(c.Arguments["to"])
		if err != nil {
			return nil, err
		}
		position, err := client.Seek(ctx, topic, subscription, place)
		return object{"position": position}, err
	case "subscription.delete":
		return object{}, client.DeleteSubscription(ctx, topic, subscription)
	case "status":
		return one(client.Status(ctx))
	}
	return nil, errUnknown
}

func members(info ister.Info) object {
	told := object{}
	for name, value := range info {
		told[name] = inJSON(value)
	}
	return told
}

func answer(d *driver, line []byte) (told object) {
	var c command
	decoder := json.NewDecoder(strings.NewReader(string(line)))
	decoder.UseNumber()
	err := json.Unmarshal(line, &c.asked)
	measured := strings.HasPrefix(c.Do, "bench_")
	if err == nil && !measured {
		err = decoder.Decode(&c)
	}
	if err != nil {
		return object{"id": 0, "error": object{"code": "driver-failed", "action": "stop", "text": err.Error()}}
	}
	c.Start, c.To = whole(c.Start), whole(c.To)
	c.Options, c.Arguments = wholes(c.Options), wholes(c.Arguments)
	defer func() {
		if failed := recover(); failed != nil {
			text := fmt.Sprint(failed)
			told = object{"id": c.ID, "error": object{"code": "driver-failed", "action": "stop", "text": text}}
		}
	}()
	timeout := int64(10_000)
	if c.TimeoutMs != nil {
		timeout = *c.TimeoutMs
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(timeout)*time.Millisecond)
	defer cancel()
	if c.CancelAfterMs != nil {
		time.AfterFunc(time.Duration(*c.CancelAfterMs)*time.Millisecond, cancel)
	}
	var ok object
	if measured {
		ok, err = d.measure(ctx, c.Do, line)
	} else {
		ok, err = d.do(ctx, &c)
	}
	if err == nil {
		if ok == nil {
			ok = object{}
		}
		return object{"id": c.ID, "ok": ok}
	}
	code, action := ister.Code(err), ister.Retry
	var refused *ister.Error
	switch {
	case errors.As(err, &refused):
		action = refused.Action
	case errors.Is(err, errUnknown):
		code, action = "unsupported", ister.Fix
	case code != "timeout" && code != "cancelled":
		code, action = "driver-failed", ister.Stop
	}
	return object{"id": c.ID, "error": object{"code": code, "action": action, "text": err.Error()}}
}

// whole makes whole numbers of JSON's.
func whole(value any) any {
	switch value := value.(type) {
	case json.Number:
		if whole, err := strconv.ParseUint(value.String(), 10, 64); err == nil {
			return whole
		}
	case map[string]any:
		return wholes(value)
	}
	return value
}

func wholes(values map[string]any) map[string]any {
	for name, value := range values {
		values[name] = whole(value)
	}
	return values
}

func main() {
	d := &driver{
		map[string]*ister.Client{}, map[string]*ister.Producer{}, map[string]receiver{}, map[string]*ister.Receipt{},
		map[string]*ister.Client{}, map[string]map[place]*ister.Message{}, map[string]error{},
	}
	in, out := bufio.NewReaderSize(os.Stdin, 1<<16), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		told, err := json.Marshal(answer(d, line))
		if err != nil {
			panic(err)
		}
		_, _ = out.Write(append(told, '\n'))
		_ = out.Flush()
	}
	for _, client := range d.clients {
		_ = client.Close()
	}
}
