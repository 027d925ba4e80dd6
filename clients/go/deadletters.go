package ister

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"
)

// The dead letters of one subscription: listing what it gave up, sending it back, deleting it. They are in its dead-letter
// topic, which may be that of several subscriptions: only this one's are listed and touched.
//
// Invariants
//   - a letter is acknowledged once what was to be done with it is done: an interruption loses nothing
//   - what becomes a dead letter meanwhile waits for the next call: no letter goes around for ever

const (
	mark           = "ister."
	redriveName    = "redrive" // the subscription of a dead-letter topic through which its letters are taken
	lettersListed  = 100
	lettersSettled = 500
	lettersBytes   = 256 << 10 // so much is sent together
	lettersIdle    = 300 * time.Millisecond
	peekGap        = 1000 // messages between two that are wanted: reading them costs less than another reader
)

var addedToLetters = []string{
	mark + "topic", mark + "subscription", mark + "offset", mark + "producer", mark + "timestamp", mark + "attempts",
	mark + "reason", mark + "dead_lettered_at",
}

// DeadLetter is a message that a subscription gave up, as it was published, and why. Numbers are -1, and times zero, where
// the letter does not say.
type DeadLetter struct {
	Offset         uint64 // in the dead-letter topic
	Payload        []byte
	Key            []byte
	Attributes     map[string]string // without those about the failure
	Topic          string            // it was published to
	Subscription   string            // that gave it up
	OriginOffset   int64             // in Topic
	Producer       string            // its producer's id, in hexadecimal
	Timestamp      time.Time         // when the broker took it
	Attempts       int
	Reason         string // of the last failure
	DeadLetteredAt time.Time
}

// DeadLetters are those of one subscription; made by [Client.DeadLetters].
type DeadLetters struct {
	client              *Client
	topic, subscription string
}

// DeadLetters gives access to the dead letters of a subscription.
func (c *Client) DeadLetters(topic, subscription string) *DeadLetters {
	return &DeadLetters{c, topic, subscription}
}

// Topic is the dead-letter topic; of a subscription that is gone, the one it has by default.
func (d *DeadLetters) Topic(ctx context.Context) (string, error) {
	shown, err := d.client.Subscription(ctx, d.topic, d.subscription)
	if err != nil && !isUnknown(err) {
		return "", err
	}
	if named := shown.Text("dead_letter_topic"); named != "" {
		return named, nil
	}
	return d.topic + "." + d.subscription + deadLetterSuffix, nil
}

func isUnknown(err error) bool {
	return errors.Is(err, &Error{Code: "unknown-topic"}) || errors.Is(err, &Error{Code: "unknown-subscription"})
}

// Count is how many letters wait, of all subscriptions that share the dead-letter topic.
func (d *DeadLetters) Count(ctx context.Context) (uint64, error) {
	topic, err := d.Topic(ctx)
	if err != nil {
		return 0, err
	}
	waiting, _, err := d.waiting(ctx, topic)
	return waiting, err
}

// waiting says how many letters wait, and the offset behind the last.
func (d *DeadLetters) waiting(ctx context.Context, topic string) (count, end uint64, err error) {
	shown, err := d.client.Subscription(ctx, topic, redriveName)
	if err != nil {
		if isUnknown(err) {
			err = nil
		}
		return 0, 0, err
	}
	return number(shown["unacknowledged"]), number(shown["durable_end"]), nil
}

// List returns letters that wait, oldest first, at most limit, from an offset of the dead-letter topic on. None is
// removed.
func (d *DeadLetters) List(ctx context.Context, limit int, from uint64) ([]DeadLetter, error) {
	topic, err := d.Topic(ctx)
	if err != nil {
		return nil, err
	}
	if waiting, _, err := d.waiting(ctx, topic); err != nil || waiting == 0 {
		return nil, err
	}
	var found []DeadLetter
	for look, vain := max(1, limit), 0; len(found) < limit; {
		peeked, err := d.client.Peek(ctx, topic, redriveName, look, from)
		if err != nil {
			return nil, err
		}
		for _, message := range peeked {
			if d.isMine(message) && len(found) < limit {
				found = append(found, letterOf(message))
			}
			from = message.Offset + 1
		}
		if len(peeked) < look && len(found) < limit {
			more, err := d.more(ctx, topic, from)
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			if vain++; len(peeked) > 0 {
				vain = 0
			}
			if vain == 2 {
				return nil, fmt.Errorf("ister: letters of %s did not come: %w", topic, context.DeadlineExceeded)
			}
		}
		look = max(limit-len(found), min(2*look, lettersListed)) // there are letters of others between them
	}
	return found, nil
}

// more says whether letters wait from an offset on; an error where the broker does not say where they all are.
func (d *DeadLetters) more(ctx context.Context, topic string, from uint64) (bool, error) {
	shown, err := d.client.Subscription(ctx, topic, redriveName)
	if err != nil {
		return false, err
	}
	pending, told := pendingOf(shown), uint64(0)
	for _, each := range pending {
		if each.end > from {
			return true, nil
		}
		told += each.end - each.first
	}
	if untold := number(shown["unacknowledged"]); untold > told && len(pending) > 0 {
		return false, usage("invalid-argument", "%d letters of %q cannot be listed: they lie behind the first %d runs of "+
			"letters, which are all that a broker tells; redrive or purge some of these, then list again",
			untold-told, topic, len(pending))
	}
	return false, nil
}

// All yields the letters that wait, oldest first; none is removed. The last pair has the error, if there is one.
func (d *DeadLetters) All(ctx context.Context) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for from := uint64(0); ; {
			page, err := d.List(ctx, lettersListed, from)
			if err != nil {
				yield(DeadLetter{}, err)
				return
			}
			for _, letter := range page {
				if !yield(letter, nil) {
					return
				}
				from = letter.Offset + 1
			}
			if len(page) < lettersListed {
				return
			}
		}
	}
}

// Show returns the letter at an offset of the dead-letter topic, also one that was sent back meanwhile.
func (d *DeadLetters) Show(ctx context.Context, offset uint64) (DeadLetter, error) {
	topic, err := d.Topic(ctx)
	if err != nil {
		return DeadLetter{}, err
	}
	missing := usage("invalid-argument", "dead-letter topic %q has no letter of %q at offset %d", topic, d.subscription, offset)
	shown, err := d.client.Topic(ctx, topic)
	if err != nil {
		if isUnknown(err) {
			return DeadLetter{}, missing
		}
		return DeadLetter{}, err
	}
	if offset >= number(shown["durable_end"]) {
		return DeadLetter{}, missing
	}
	reader, err := d.client.Reader(ctx, topic, AtOffset(offset), 1)
	if errors.Is(err, &Error{Code: "offset-out-of-range"}) {
		return DeadLetter{}, missing
	}
	if err != nil {
		return DeadLetter{}, err
	}
	defer reader.abandon()
	message, err := reader.Receive(ctx)
	if err != nil {
		return DeadLetter{}, err
	}
	if message.Offset != offset || !d.isMine(message) {
		return DeadLetter{}, missing
	}
	return letterOf(message), nil
}

// isMine says whether this subscription gave a letter up; one that was published by hand is everybody's.
func (d *DeadLetters) isMine(message *Message) bool {
	topic, told := message.Attributes[mark+"topic"]
	if told && topic != d.topic {
		return false
	}
	subscription, told := message.Attributes[mark+"subscription"]
	return !told || subscription == d.subscription
}

func letterOf(message *Message) DeadLetter {
	told := func(name string) string { return message.Attributes[mark+name] }
	whole := func(name string) int64 {
		if value, err := strconv.ParseInt(told(name), 10, 64); err == nil && value >= 0 {
			return value
		}
		return -1
	}
	return DeadLetter{
		Offset: message.Offset, Payload: message.Payload, Key: message.Key, Attributes: withoutFailure(message.Attributes),
		Topic: told("topic"), Subscription: told("subscription"), OriginOffset: whole("offset"), Producer: told("producer"),
		Timestamp: timeOf(uint64(max(0, whole("timestamp")))), Attempts: int(max(0, whole("attempts"))),
		Reason: told("reason"), DeadLetteredAt: timeOf(uint64(max(0, whole("dead_lettered_at")))),
	}
}

func withoutFailure(attributes map[string]string) map[string]string {
	kept := map[string]string{}
	for name, value := range attributes {
		if !slices.Contains(addedToLetters, name) {
			kept[name] = value
		}
	}
	return kept
}

// SettleOptions say which letters [DeadLetters.Redrive] and [DeadLetters.Purge] are about, and tell of the progress.
type SettleOptions struct {
	Limit    int                   // at most so many; 0: all that wait
	Offsets  []uint64              // those at these offsets of the dead-letter topic; nil: any
	To       string                // the topic that they are sent to; by default the one they came from
	Progress func(done, total int) // called after each batch
}

// Redrive sends letters back to the topic they came from, or to another, and returns how many. Payload, key and
// attributes are unchanged; the attributes about the failure give way to "ister.redriven_from", "ister.redriven_offset"
// and "ister.redriven_for". After an interruption some may be sent again, and none is lost. A letter that the topic
// refuses stays, and does not stop others; the error names the first. Another redrive that is running is
// "subscription-busy".
func (d *DeadLetters) Redrive(ctx context.Context, options *SettleOptions) (int, error) {
	if options == nil {
		options = &SettleOptions{}
	}
	from, err := d.Topic(ctx)
	if err != nil {
		return 0, err
	}
	to := options.To
	if to == "" {
		to = d.topic
	}
	if to == from {
		return 0, usage("invalid-argument", "%q is the dead-letter topic: letters would go around for ever", to)
	}
	producer, err := d.client.Producer(ctx, to, nil)
	if err != nil {
		return 0, err
	}
	defer producer.abandon()
	if producer.strategy() == "non-reliable" {
		return 0, usage("invalid-argument", "topic %q is non-reliable: it stores nothing, so letters would be lost", to)
	}
	return d.settle(ctx, from, options, func(letters []*Message) (map[uint64]*Error, error) {
		return d.sendBack(ctx, producer, letters)
	})
}

// Purge deletes letters, and returns how many.
func (d *DeadLetters) Purge(ctx context.Context, options *SettleOptions) (int, error) {
	if options == nil {
		options = &SettleOptions{}
	}
	from, err := d.Topic(ctx)
	if err != nil {
		return 0, err
	}
	return d.settle(ctx, from, options, func([]*Message) (map[uint64]*Error, error) { return nil, nil })
}

// sendBack sends letters, many at once; one that is refused does not stop the others.
func (d *DeadLetters) sendBack(ctx context.Context, producer *Producer, letters []*Message) (map[uint64]*Error, error) {
	refused := map[uint64]*Error{}
	send := func(part []*Message) (*Error, error) {
		made := make([]Outgoing, len(part))
		for i, letter := range part {
			attributes := withoutFailure(letter.Attributes)
			attributes[mark+"redriven_from"] = letter.Topic
			attributes[mark+"redriven_offset"] = strconv.FormatUint(letter.Offset, 10)
			attributes[mark+"redriven_for"] = d.subscription
			made[i] = Outgoing{Payload: letter.Payload, Key: letter.Key, Attributes: attributes}
		}
		receipt, err := producer.SendBatch(ctx, made)
		if err == nil {
			_, err = receipt.Wait(ctx)
		}
		var told *Error
		if errors.As(err, &told) && slices.Contains([]string{"message-too-large", "batch-too-large", "invalid-argument"}, told.Code) {
			return told, nil // about a letter, and not about the topic
		}
		return nil, err
	}
	for len(letters) > 0 {
		count, size := 0, 0
		for ; count < len(letters) && (count == 0 || size < lettersBytes); count++ {
			size += len(letters[count].Payload) + len(letters[count].Key)
			for name, value := range letters[count].Attributes {
				size += len(name) + len(value)
			}
		}
		part := letters[:count]
		letters = letters[count:]
		why, err := send(part)
		if err != nil {
			return refused, err
		}
		for i := 0; why != nil && i < count; i++ {
			alone := why
			if count > 1 {
				if alone, err = send(part[i : i+1]); err != nil {
					return refused, err
				}
			}
			if alone != nil {
				refused[part[i].Offset] = alone
			}
		}
	}
	return refused, nil
}

// settle goes once over the letters that wait now. What cannot be settled stays.
func (d *DeadLetters) settle(
	ctx context.Context, topic string, options *SettleOptions,
	settle func(letters []*Message) (map[uint64]*Error, error),
) (done int, err error) {
	waiting, end, err := d.waiting(ctx, topic)
	if err != nil {
		return 0, err
	}
	most := int(waiting)
	if options.Limit > 0 {
		most = min(most, options.Limit)
	}
	if options.Offsets != nil {
		most = min(most, len(options.Offsets))
	}
	if most == 0 {
		return 0, nil
	}
	consumer, err := d.client.Consumer(ctx, topic, redriveName, &ConsumerOptions{
		Type: "exclusive", Start: Earliest(), CreditMessages: 2 * lettersSettled,
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		if closing := consumer.Close(ctx); err == nil {
			err = closing
		}
	}()
	settled, refused, first := map[uint64]bool{}, map[uint64]*Error{}, (*Error)(nil)
	unseen, reached := waiting, uint64(0)
	for !(len(settled) == 0 && (unseen == 0 || done >= most)) {
		came, err := d.some(ctx, consumer)
		if err != nil {
			return done, err
		}
		if came == nil {
			drained, err := d.drained(ctx, topic, end)
			if err != nil {
				return done, err
			}
			if drained {
				break
			}
			continue
		}
		var again, fresh []*Message
		for _, letter := range came {
			if letter.Offset >= end {
				unseen = 0 // it became one meanwhile
				break
			}
			if letter.Offset >= reached {
				reached = letter.Offset + 1
				unseen -= min(1, unseen)
			}
			switch {
			case !d.isMine(letter) || (options.Offsets != nil && !slices.Contains(options.Offsets, letter.Offset)):
			case settled[letter.Offset]:
				again = append(again, letter)
			case refused[letter.Offset] == nil && done+len(fresh) < most:
				fresh = append(fresh, letter)
			}
		}
		if len(fresh) > 0 {
			not, err := settle(fresh)
			if err != nil {
				return done, err
			}
			for _, letter := range fresh {
				if why := not[letter.Offset]; why != nil {
					refused[letter.Offset] = why
					if first == nil {
						first = &Error{why.Code, Fix, fmt.Sprintf("letter at offset %d of %q stays: %s", letter.Offset, topic, why.Text)}
					}
					continue
				}
				again = append(again, letter)
				settled[letter.Offset] = true
				done++
			}
		}
		if len(again) > 0 {
			if err := consumer.Ack(again...); err != nil {
				return done, err
			}
			switch err := consumer.Flush(ctx); {
			case err == nil:
				for _, letter := range again {
					delete(settled, letter.Offset)
				}
			case !errors.Is(err, errForgotten): // else they come again
				return done, err
			}
		}
		if options.Progress != nil {
			options.Progress(done, most)
		}
	}
	if first != nil {
		return done, first
	}
	return done, nil
}

// some returns letters that came together; nil where none came for a moment.
func (d *DeadLetters) some(ctx context.Context, consumer *Consumer) ([]*Message, error) {
	waiting, cancel := context.WithTimeout(ctx, lettersIdle)
	defer cancel()
	came, err := consumer.ReceiveBatch(waiting, lettersSettled)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, nil
	}
	return came, err
}

func (d *DeadLetters) drained(ctx context.Context, topic string, end uint64) (bool, error) {
	shown, err := d.client.Subscription(ctx, topic, redriveName)
	if err != nil {
		return false, err
	}
	if paused, _ := shown["paused"].(bool); paused || number(shown["paused"]) > 0 {
		return false, &Error{"paused", Retry, fmt.Sprintf("subscription %q of %q is paused", redriveName, topic)}
	}
	return number(shown["waiting_redelivery"]) == 0 && number(shown["position"]) >= end, nil
}

// ---- looking at what a subscription has not acknowledged

func pendingOf(shown Info) []span {
	listed, _ := shown["pending"].([]any)
	var found []span
	for _, each := range listed {
		if pair, ok := each.([]any); ok && len(pair) == 2 {
			found = append(found, span{number(pair[0]), number(pair[1])})
		}
	}
	return found
}

// Peek returns messages that a subscription has not acknowledged, without consuming them: at most count, from an offset
// on. A non-reliable topic keeps nothing to look at.
func (c *Client) Peek(ctx context.Context, topic, subscription string, count int, from uint64) ([]*Message, error) {
	shown, err := c.Subscription(ctx, topic, subscription)
	if err != nil {
		return nil, err
	}
	if _, kept := shown["pending"]; !kept {
		return nil, usage("invalid-argument", "subscription %q keeps no messages: there is nothing to look at", subscription)
	}
	var wanted, places []span
	left := uint64(max(0, count))
	for _, each := range pendingOf(shown) {
		first := max(each.first, from)
		if first >= each.end || left == 0 {
			continue
		}
		end := min(each.end, first+left)
		left -= end - first
		wanted = append(wanted, span{first, end})
		if n := len(places); n > 0 && first-places[n-1].end <= peekGap {
			places[n-1].end = end
		} else {
			places = append(places, span{first, end})
		}
	}
	var found []*Message
	for _, place := range places {
		if err := c.read(ctx, topic, place, func(message *Message) {
			if slices.ContainsFunc(wanted, func(each span) bool {
				return each.first <= message.Offset && message.Offset < each.end
			}) {
				found = append(found, message)
			}
		}); err != nil {
			return found, err
		}
	}
	return found, nil
}

// read looks at the messages of one range of offsets.
func (c *Client) read(ctx context.Context, topic string, place span, look func(*Message)) error {
	reader, err := c.Reader(ctx, topic, AtOffset(place.first), int(min(place.end-place.first, windowMost)))
	if err != nil {
		return err
	}
	defer reader.abandon()
	for next := reader.Position(); next < place.end; {
		came, err := reader.ReceiveBatch(ctx, windowMost)
		if err != nil {
			return err
		}
		for _, message := range came {
			if message.Offset < place.end {
				look(message)
			}
			next = message.Offset + 1
		}
	}
	return nil
}
