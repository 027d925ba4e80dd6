package ister

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"
)

// A producer's side of the conversation, section 8 of PROTOCOL.md. It knows no socket, no clock and no goroutine.
//
// Invariants
//   - a sealed batch is never cut again: what is sent once is sent again byte for byte
//   - what has no receipt fits the window and BATCHES_IN_FLIGHT_MAX, or is one batch alone
//   - a receipt is resolved once

// refusedKept is how many refused batches are remembered, for a program that gives their numbers again.
const refusedKept = 64

type pubPhase int

const (
	pubIdle pubPhase = iota
	pubOpening
	pubOpen
	pubWaiting
	pubClosing
	pubClosed
)

// shipment is what becomes of one batch; every receipt of its messages points here.
type shipment struct {
	first     uint64
	duplicate bool
	err       *Error
	observed  atomic.Bool // somebody has seen its error
	done      chan struct{}
	over      bool
	topic     string
	receipts  []Receipt // made, and not given out yet
}

// receipt returns one of a message, or of a batch; they are made many at once.
func (s *shipment) receipt(index uint64) *Receipt {
	if s.over {
		return &Receipt{s, index, 1}
	}
	if len(s.receipts) == 0 {
		s.receipts = make([]Receipt, receiptsMade)
	}
	made := &s.receipts[0]
	s.receipts = s.receipts[1:]
	*made = Receipt{s, index, 1}
	return made
}

func newShipment(topic string) *shipment { return &shipment{topic: topic, done: make(chan struct{})} }

func (s *shipment) resolve(first uint64, err *Error) {
	if s.over {
		return
	}
	s.over, s.first, s.err, s.duplicate = true, first, err, first == offsetUnknown && err == nil
	s.receipts = nil
	close(s.done)
}

type outgoing struct {
	sequence, count uint64
	columns         uint64
	body            [][]byte
	size            uint64
	shipment        *shipment
	refused         *Error
}

// failure is why messages were refused for good.
type failure struct {
	first, end uint64
	err        *Error
}

type publication struct {
	handle     uint64
	topic      string
	id         uint64
	phase      pubPhase
	opened     bool
	strategy   string
	err        *Error
	trouble    *Error
	refused    *shipment // the first refused one, for who looks at no receipts
	batchBytes uint64
	linger     time.Duration
	ownWindow  uint64

	session  *session
	openRef  uint64 // of the last open
	next     uint64 // the number of the next message
	window   uint64
	inFlight uint64
	batches  []*outgoing
	bytes    uint64
	sent     int

	gathered      gathering
	gatheredSince time.Time
	shipment      *shipment
	failed        []failure // the last batches that were refused for good

	due      time.Time
	failures int
	changed  func() // somebody waits for news
}

func (p *publication) number() uint64 { return p.handle }

func (p *publication) lastWords() []header { return nil }

func (p *publication) onReady(s *session, _ bool, now time.Time) {
	p.session = s
	if p.phase == pubIdle || (p.phase == pubWaiting && !p.due.After(now)) {
		p.open()
	}
}

func (p *publication) lowest() uint64 {
	if len(p.batches) > 0 {
		return p.batches[0].sequence
	}
	return p.next - uint64(p.gathered.count)
}

func (p *publication) open() {
	p.phase, p.sent = pubOpening, 0
	for _, batch := range p.batches {
		batch.refused = nil
	}
	p.openRef = p.session.expect(p.onOpenAnswer)
	p.session.emit(header{
		kType: tOpenProducer, kRef: p.openRef, kHandle: p.handle, kTopic: p.topic,
		kProducer: p.id, kSequence: p.lowest(),
	})
}

func (p *publication) onOpenAnswer(h header, _ [][]byte, now time.Time) *Error {
	if p.phase != pubOpening || h.uint(kRef) != p.openRef { // of an open that another one replaced
		return nil
	}
	switch h.uint(kType) {
	case tMoved:
		p.session.onMoved(p, h.text(kEndpoint))
	case tError:
		p.refusedWhole(h.error(), now)
	case tOpened:
		p.phase, p.failures, p.trouble = pubOpen, 0, nil
		limits := p.session.limits
		p.window = limits.windowBytes
		if h.has(kBytes) {
			p.window = h.uint(kBytes)
		}
		if p.ownWindow > 0 {
			p.window = min(p.window, p.ownWindow)
		}
		p.inFlight = max(1, limits.batchesInFlightMax)
		p.strategy = h.text(kStrategy)
		if !p.opened {
			p.opened = true
			p.next = max(p.next, h.uint(kSequence))
		}
		p.send()
		p.changed()
	default:
		return malformed("a frame of type %d answered OPEN_PRODUCER", h.uint(kType))
	}
	return nil
}

// isOpenedAgain says whether all that is unresolved is to be sent again over a handle that is opened anew. A worker that
// does not know the handle says "fix", for whoever made it up; here it was closed by a topic that failed.
func isOpenedAgain(err *Error) bool { return err.Action == Retry || err.Code == "unknown-handle" }

func (p *publication) refusedWhole(err *Error, now time.Time) {
	if isOpenedAgain(err) {
		p.phase, p.trouble = pubWaiting, err
		p.due = now.Add(backOff(p.failures, backOffMin, backOffMax))
		p.failures++
		return
	}
	p.fail(err)
}

func (p *publication) fail(err *Error) {
	if p.phase == pubClosed {
		return
	}
	p.phase, p.err = pubClosed, err
	for _, batch := range p.batches {
		batch.shipment.resolve(0, err)
	}
	if p.shipment != nil {
		p.shipment.resolve(0, err)
	}
	p.batches, p.gathered, p.shipment, p.bytes = nil, gathering{}, nil, 0
	p.changed()
}

func (p *publication) onLost(reason *Error) {
	p.trouble = reason
	switch p.phase {
	case pubOpening, pubOpen, pubWaiting:
		p.phase, p.sent = pubIdle, 0
	case pubClosing:
		p.fail(closedError("the producer"))
	}
	p.session = nil
}

func (p *publication) tick(now time.Time) {
	if p.phase == pubWaiting && !p.due.After(now) && p.session != nil {
		p.open()
	}
	if p.gathered.count > 0 && !p.gatheredSince.Add(p.linger).After(now) {
		p.seal()
	}
}

func (p *publication) deadline() time.Time {
	var due time.Time
	if p.phase == pubWaiting {
		due = p.due
	}
	if p.gathered.count > 0 && p.hasRoom(p.gathered.size) {
		if linger := p.gatheredSince.Add(p.linger); due.IsZero() || linger.Before(due) {
			due = linger
		}
	}
	return due
}

func (p *publication) onFrame(h header, _ [][]byte, now time.Time) *Error {
	switch h.uint(kType) {
	case tReceipt:
		pairs := h.uints(kReceipts)
		for i := 0; i+1 < len(pairs); i += 2 {
			p.resolve(pairs[i], pairs[i+1])
		}
		p.afterAnswers()
	case tError:
		err := h.error()
		if h.flag(kClosed) || !h.has(kSequence) {
			if p.phase == pubOpen || p.phase == pubOpening || p.phase == pubWaiting {
				p.refusedWhole(err, now)
			}
			return nil
		}
		p.refuse(h.uint(kSequence), err, now)
	}
	return nil
}

func (p *publication) resolve(sequence, offset uint64) {
	for i, batch := range p.batches {
		if batch.sequence == sequence {
			batch.shipment.resolve(offset, nil)
			if p.session != nil && len(p.session.outbox) == 0 { // else something may be about to send it again
				p.gathered.giveBack(batch.body)
			}
			p.remove(i)
			return
		}
	}
}

func (p *publication) remove(i int) {
	p.bytes -= p.batches[i].size
	if i == 0 {
		p.batches[0] = nil
		p.batches = p.batches[1:]
	} else {
		p.batches = slices.Delete(p.batches, i, i+1)
	}
	if i < p.sent {
		p.sent--
	}
}

func (p *publication) refuse(sequence uint64, err *Error, now time.Time) {
	if p.phase != pubOpen {
		return
	}
	for _, batch := range p.batches {
		if batch.sequence != sequence {
			if batch.refused != nil { // what followed a refused one is a gap, and is sent again behind it
				if batch.sequence < sequence {
					return
				}
			}
			continue
		}
		if isOpenedAgain(err) {
			p.refusedWhole(err, now)
			return
		}
		batch.refused = err
		p.afterAnswers()
		return
	}
}

// afterAnswers goes on once something was answered.
func (p *publication) afterAnswers() {
	for p.phase == pubOpen && len(p.batches) > 0 && p.batches[0].refused != nil {
		batch := p.batches[0]
		batch.shipment.resolve(0, batch.refused)
		if p.failed = append(p.failed, failure{batch.sequence, batch.sequence + batch.count, batch.refused}); len(p.failed) > refusedKept {
			p.failed = p.failed[1:]
		}
		if p.refused == nil {
			p.refused = batch.shipment
		}
		p.remove(0)
		p.open() // behind it; what follows is sent again
	}
	if p.gathered.count > 0 && len(p.batches) == 0 {
		p.seal()
	}
	p.changed()
}

// ---- taking messages

func sizeOf(message *content) uint64 {
	var alone gathering
	return alone.wouldBe(message)
}

func (p *publication) hasRoom(size uint64) bool {
	if !p.opened || p.phase == pubClosed || p.phase == pubClosing {
		return false
	}
	return (p.bytes == 0 || p.bytes+size <= p.window) && uint64(len(p.batches)) < p.inFlight
}

func (p *publication) batchLimit() uint64 {
	limit := min(p.batchBytes, p.window)
	if p.session != nil {
		limit = min(limit, p.session.limits.batchBytesMax)
	}
	return limit
}

// take adds a message to what is gathered; false where it must wait for room. The time is asked for where it counts.
func (p *publication) take(message *content, now func() time.Time) (*shipment, uint64, bool) {
	size := p.gathered.wouldBe(message)
	if p.gathered.count > 0 && size > p.batchLimit() {
		if !p.seal() {
			return nil, 0, false
		}
		size = p.gathered.wouldBe(message)
	}
	if p.gathered.count == 0 {
		if !p.hasRoom(size) && p.bytes > 0 && size > p.batchLimit() {
			return nil, 0, false
		}
		p.gatheredSince, p.shipment = now(), newShipment(p.topic)
	}
	p.gathered.add(message, size)
	p.next++
	into, index := p.shipment, uint64(p.gathered.count-1)
	if len(p.batches) == 0 || size >= p.batchLimit() {
		p.seal()
	}
	return into, index, true
}

// more adds a payload to those that are gathered already, if nothing about it needs a closer look; else nil.
func (p *publication) more(payload []byte) *Receipt {
	g := &p.gathered
	size := g.size + lengthBytes + uint64(len(payload))
	if g.count == 0 || g.columns != 0 || p.phase != pubOpen || len(p.batches) == 0 || size >= p.batchLimit() ||
		uint64(len(payload)) > p.session.limits.messageBytesMax {
		return nil
	}
	g.payloads.add(payload)
	g.count++
	g.size = size
	p.next++
	return p.shipment.receipt(uint64(g.count - 1))
}

// takeBatch sends messages as a batch of their own; false where it must wait for room.
func (p *publication) takeBatch(count, columns uint64, body [][]byte) (*shipment, bool) {
	if p.gathered.count > 0 && !p.seal() {
		return nil, false
	}
	if !p.hasRoom(sizeOfBody(body)) {
		return nil, false
	}
	into := newShipment(p.topic)
	p.enqueue(count, columns, body, into, p.next)
	p.next += count
	return into, true
}

func sizeOfBody(body [][]byte) uint64 {
	size := uint64(0)
	for _, frame := range body {
		size += uint64(len(frame))
	}
	return size
}

// seal makes a batch of what is gathered, if there is room for it.
func (p *publication) seal() bool {
	if p.gathered.count == 0 {
		return true
	}
	if !p.hasRoom(p.gathered.size) {
		return false
	}
	count := uint64(p.gathered.count)
	columns, body := p.gathered.seal()
	p.enqueue(count, columns, body, p.shipment, p.next-count)
	p.shipment = nil
	return true
}

func (p *publication) enqueue(count, columns uint64, body [][]byte, into *shipment, sequence uint64) {
	batch := &outgoing{sequence: sequence, count: count, columns: columns, body: body, shipment: into}
	batch.size = sizeOfBody(body)
	p.batches = append(p.batches, batch)
	p.bytes += batch.size
	p.send()
}

func (p *publication) send() {
	if p.phase != pubOpen || p.session == nil {
		return
	}
	for ; p.sent < len(p.batches); p.sent++ {
		batch := p.batches[p.sent]
		h := header{kType: tPublish, kHandle: p.handle, kSequence: batch.sequence}
		if batch.columns != 0 {
			h[kColumns] = batch.columns
		}
		p.session.emit(h, batch.body...)
	}
}

func (p *publication) answered() bool { return p.gathered.count == 0 && len(p.batches) == 0 }

// skipTo leaves numbers out; only when everything is answered.
func (p *publication) skipTo(sequence uint64) {
	p.next = sequence
	if p.phase == pubOpen {
		p.open()
	}
}

// before returns the shipment of a number that was used in this run, or one that says: stored before, or refused.
func (p *publication) before(sequence uint64) (*shipment, uint64) {
	for _, each := range p.failed {
		if each.first <= sequence && sequence < each.end {
			refused := newShipment(p.topic)
			refused.resolve(0, each.err)
			return refused, 0
		}
	}
	for _, batch := range p.batches {
		if batch.sequence <= sequence && sequence < batch.sequence+batch.count {
			return batch.shipment, sequence - batch.sequence
		}
	}
	if first := p.next - uint64(p.gathered.count); p.shipment != nil && sequence >= first {
		return p.shipment, sequence - first
	}
	known := newShipment(p.topic)
	known.resolve(offsetUnknown, nil)
	return known, 0
}

// close says CLOSE; everything must be answered, or it is given up.
func (p *publication) close() {
	switch {
	case p.phase == pubClosed || p.phase == pubClosing:
	case (p.phase == pubOpen || p.phase == pubOpening || p.phase == pubWaiting) && p.session != nil:
		p.phase = pubClosing
		p.session.sayClose(p.handle, nil, func() { p.fail(closedError("the producer")) })
	default:
		p.fail(closedError("the producer"))
	}
}

// ProducerID returns the id of a named producer: the same in every language.
func ProducerID(topic, name string) uint64 {
	digest := blake2b8([]byte(topic + "\x00" + name))
	id := binary.LittleEndian.Uint64(digest[:]) >> 1
	if id == 0 {
		return 1
	}
	return id
}
