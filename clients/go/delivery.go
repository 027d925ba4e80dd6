package ister

import (
	"encoding/binary"
	"time"
)

// delivery is one DELIVER: its frames as they came. Messages are made of them when the program takes them, in order.
//
// Invariants
//   - what was looked over when it came cannot fail later: lengths, offsets and times are those of its messages
//   - `at` and what is with it are the next message's, and change under the lock of handing alone
type delivery struct {
	owner   *attachment
	epoch   int
	count   int
	attempt int
	singly  bool
	bytes   uint64 // of its frames
	came    time.Time

	lengths, payloads            []byte
	keyLengths, keys             []byte
	attributeLengths, attributes []byte
	deliverAt                    []byte
	ranges                       []uint64 // offsets: first, end, ...
	stamps                       []uint64 // count, unix ms, ...

	at, payloadAt, keyAt, attributesAt int
	offset                             uint64
	stampLeft                          uint64
	stamp                              time.Time
}

func newDelivery(h header, body [][]byte) (*delivery, *Error) {
	count := h.uint(kCount)
	if count == 0 || len(body) < 2 || uint64(len(body[0])) != lengthBytes*count {
		return nil, malformed("a delivery does not hold the %d messages it says", count)
	}
	d := &delivery{count: int(count), attempt: 1, singly: h.flag(kSingly), bytes: sizeOfBody(body)}
	if h.has(kAttempt) {
		d.attempt = int(h.uint(kAttempt))
	}
	if err := d.cut(h.uint(kColumns), body); err != nil {
		return nil, err
	}
	first := h.uint(kOffset)
	d.ranges = []uint64{first, first + count}
	if h.has(kRanges) {
		d.ranges = h.uints(kRanges)
	}
	found, last := uint64(0), uint64(0)
	for i := 0; i+1 < len(d.ranges); i += 2 {
		begin, end := d.ranges[i], d.ranges[i+1]
		if begin >= end || (i > 0 && begin <= last) || end-begin > count-found {
			return nil, malformed("the ranges of a delivery do not hold the %d messages it says", count)
		}
		found, last = found+end-begin, end
	}
	if found != count || d.ranges[0] != first {
		return nil, malformed("the ranges of a delivery do not hold the %d messages it says", count)
	}
	d.offset, d.stamps, found = first, h.uints(kTimestamps), 0
	for i := 0; i+1 < len(d.stamps); i += 2 {
		if d.stamps[i] > count-found {
			return nil, malformed("a delivery has times for more than its %d messages", count)
		}
		found += d.stamps[i]
	}
	if found != count {
		return nil, malformed("a delivery has times for %d of its %d messages", found, count)
	}
	return d, nil
}

// cut takes the body apart, and looks whether it adds up.
func (d *delivery) cut(columns uint64, body [][]byte) *Error {
	wanted := 2
	for _, bit := range []uint64{columnKeys, columnAttributes, columnTimes} {
		if columns&bit != 0 {
			wanted++
		}
	}
	if columns > 7 || len(body) != wanted {
		return malformed("%d messages with columns %d have %d body frames", d.count, columns, len(body))
	}
	d.lengths, d.payloads = body[0], body[1]
	if !addsUp(d.lengths, d.payloads) {
		return mismatch("a batch")
	}
	rest := body[2:]
	table := lengthBytes * d.count
	if columns&columnKeys != 0 {
		if len(rest[0]) < table || !addsUp(rest[0][:table], rest[0][table:]) {
			return mismatch("a column of keys")
		}
		d.keyLengths, d.keys = rest[0][:table], rest[0][table:]
		rest = rest[1:]
	}
	if columns&columnAttributes != 0 {
		if len(rest[0]) < table || !addsUp(rest[0][:table], rest[0][table:]) {
			return mismatch("a column of attributes")
		}
		d.attributeLengths, d.attributes = rest[0][:table], rest[0][table:]
		rest = rest[1:]
	}
	if columns&columnTimes != 0 {
		if len(rest[0]) != timeBytes*d.count {
			return mismatch("a column of times")
		}
		d.deliverAt = rest[0]
	}
	return nil
}

func addsUp(table, items []byte) bool {
	sum := uint64(0)
	for ; len(table) >= lengthBytes; table = table[lengthBytes:] {
		sum += uint64(binary.LittleEndian.Uint32(table))
	}
	return sum == uint64(len(items))
}

func part(table, items []byte, i int, from *int) []byte {
	end := *from + int(binary.LittleEndian.Uint32(table[lengthBytes*i:]))
	found := items[*from:end:end]
	*from = end
	return found
}

// fill makes the next message.
func (d *delivery) fill(m *Message) {
	m.Topic, m.Offset, m.Attempt, m.delivery = d.owner.topic, d.offset, d.attempt, d
	m.Payload = part(d.lengths, d.payloads, d.at, &d.payloadAt)
	if d.keyLengths != nil {
		if key := part(d.keyLengths, d.keys, d.at, &d.keyAt); len(key) > 0 {
			m.Key = key
		}
	}
	if d.attributeLengths != nil {
		if encoded := part(d.attributeLengths, d.attributes, d.at, &d.attributesAt); len(encoded) > 0 {
			m.Attributes, m.broken = attributesOf(encoded)
		}
	}
	if d.deliverAt != nil {
		m.DeliverAt = timeOf(binary.LittleEndian.Uint64(d.deliverAt[timeBytes*d.at:]))
	}
	for d.stampLeft == 0 {
		d.stampLeft, d.stamp = d.stamps[0], time.UnixMilli(int64(d.stamps[1]))
		d.stamps = d.stamps[2:]
	}
	m.Timestamp = d.stamp
	d.stampLeft--
	d.at++
	if d.offset++; d.offset == d.ranges[1] && len(d.ranges) > 2 {
		d.ranges = d.ranges[2:]
		d.offset = d.ranges[0]
	}
}

// behind returns the offset behind the next so many messages.
func (d *delivery) behind(count int) uint64 {
	offset := d.offset
	for i := 0; ; i += 2 {
		if here := d.ranges[i+1] - offset; uint64(count) <= here || i+2 >= len(d.ranges) {
			return offset + uint64(count)
		} else {
			count -= int(here)
			offset = d.ranges[i+2]
		}
	}
}

func timeOf(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

func attributesOf(encoded []byte) (map[string]string, *Error) {
	var found map[string]string
	if err := decoder.Unmarshal(encoded, &found); err != nil {
		return nil, malformed("attributes are a map of text to text: %v", err)
	}
	return found, nil
}
