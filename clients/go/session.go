package ister

import (
	"maps"
	"slices"
	"time"
)

// The client's side of a session with one worker: messages in, messages out. It knows no socket, no clock and no
// goroutine; whoever uses it holds the client's lock.

const (
	greetingTime = 3 * time.Second
	backOffMin   = 50 * time.Millisecond
	backOffMax   = 2 * time.Second
	never        = 100 * 365 * 24 * time.Hour
)

type phase int

const (
	idle phase = iota
	greeting
	ready
	ended
)

// limits are what WELCOME says; section 12.
type limits struct {
	messageBytesMax, batchBytesMax, batchesInFlightMax, windowBytes uint64
	creditMessagesMax, creditBytesMax                               uint64
}

// handle is a producer or a consumer, as its session sees it.
type handle interface {
	number() uint64
	onReady(s *session, resumed bool, now time.Time)
	onLost(reason *Error)
	onFrame(h header, body [][]byte, now time.Time) *Error
	tick(now time.Time)
	deadline() time.Time
	fail(err *Error)
	lastWords() []header // to be said before CLOSE, where the connection was lost meanwhile
}

type request struct {
	operation string
	arguments map[string]any
	resent    bool
	due       time.Time // asked (again) then
	tries     int
	result    []byte
	err       *Error
	done      chan struct{}
	over      bool
	told      func() // called then
}

func (r *request) finish(result []byte, err *Error) {
	if !r.over {
		r.over, r.result, r.err = true, result, err
		close(r.done)
		if r.told != nil {
			r.told()
		}
	}
}

type answer func(h header, body [][]byte, now time.Time) *Error

// identity is what makes a session the same one over its next connection.
type identity struct {
	secret []byte
	// handles that are closed here, and that the broker is not known to have closed: what is said before CLOSE
	departed map[uint64][]header
}

type session struct {
	identity
	phase     phase
	text      string
	boot      uint64
	limits    limits
	heartbeat time.Duration
	outbox    [][][]byte
	handles   map[uint64]handle
	trouble   *Error
	onMoved   func(h handle, endpoint string)
	onWelcome func()

	refs     *uint64 // the last REF; of the whole client, because a session may be left and resumed from another of these
	answers  map[uint64]answer
	waiting  []*request
	asked    map[uint64]*request
	greeted  time.Time
	spoke    time.Time
	heard    time.Time
	pinged   time.Time
	pingOpen bool
}

func newSession(text string, refs *uint64) *session {
	return &session{
		text: text, refs: refs, handles: map[uint64]handle{}, answers: map[uint64]answer{}, asked: map[uint64]*request{},
	}
}

func (s *session) emit(h header, body ...[]byte) {
	s.outbox = append(s.outbox, append([][]byte{encode(map[uint64]any(h))}, body...))
}

// expect returns a REF whose answer is given to a function.
func (s *session) expect(then answer) uint64 {
	*s.refs++
	s.answers[*s.refs] = then
	return *s.refs
}

// adopt has a handle live here; onReady is the caller's.
func (s *session) adopt(h handle) {
	s.handles[h.number()] = h
	delete(s.departed, h.number()) // it may have come back
}

func (s *session) attach(h handle, now time.Time) {
	s.adopt(h)
	if s.phase == ready {
		h.onReady(s, true, now)
	} else if s.phase == ended {
		h.fail(s.trouble)
	}
}

// detach removes a handle. If the broker cannot be told now that it is closed, it is told in the resumed session.
func (s *session) detach(h handle) {
	if s.handles[h.number()] == h {
		delete(s.handles, h.number())
		if s.phase != ready {
			s.depart(h.number(), h.lastWords())
		}
	}
}

func (s *session) depart(number uint64, words []header) {
	if s.departed == nil {
		s.departed = map[uint64][]header{}
	}
	if _, known := s.departed[number]; !known || len(words) > 0 {
		s.departed[number] = words
	}
}

// sayClose sends CLOSE, and again over the next connection of this session if there is no answer over this one; then
// behind the last words, acknowledgments that may have been lost.
func (s *session) sayClose(number uint64, words []header, then func()) {
	s.depart(number, words)
	ref := s.expect(func(header, [][]byte, time.Time) *Error {
		delete(s.departed, number)
		then()
		return nil
	})
	s.emit(header{kType: tClose, kRef: ref, kHandle: number})
}

// sayDepartures closes what the resumed session still holds; it comes before the opens, which may want the same place.
func (s *session) sayDepartures(resumed bool) {
	if !resumed {
		s.departed = nil
	}
	for _, number := range slices.Sorted(maps.Keys(s.departed)) {
		for _, word := range s.departed[number] {
			s.emit(word)
		}
		s.sayClose(number, nil, func() {})
	}
}

// connect says HELLO: there is a new socket.
func (s *session) connect(now time.Time) {
	if s.phase != idle {
		return
	}
	s.phase, s.outbox, s.pingOpen = greeting, nil, false
	s.greeted, s.spoke, s.heard = now, now, now
	hello := header{kType: tHello, kVersion: []uint64{1}, kClient: s.text}
	if s.secret != nil {
		hello[kSession] = s.secret
	}
	s.emit(hello)
}

// lost says that the socket is gone, or as good as gone.
func (s *session) lost(reason *Error) {
	if s.phase != greeting && s.phase != ready {
		return
	}
	s.phase, s.trouble, s.outbox = idle, reason, nil
	s.answers = map[uint64]answer{}
	for ref, r := range s.asked {
		r.resent = true
		r.due = time.Time{}
		s.waiting = append(s.waiting, r)
		delete(s.asked, ref)
	}
	for _, h := range s.handles {
		h.onLost(reason)
	}
}

// end fails everything for good.
func (s *session) end(reason *Error, bye bool) {
	if s.phase == ready && bye {
		s.emit(header{kType: tBye})
	}
	s.phase, s.trouble = ended, reason
	for _, r := range s.waiting {
		r.finish(nil, reason)
	}
	for _, r := range s.asked {
		r.finish(nil, reason)
	}
	s.waiting, s.asked = nil, map[uint64]*request{}
	for _, h := range s.handles {
		h.fail(reason)
	}
}

func (s *session) ask(r *request, now time.Time) {
	if s.phase == ended {
		r.finish(nil, s.trouble)
		return
	}
	s.waiting = append(s.waiting, r)
	s.sendRequests(now)
}

func (s *session) withdraw(r *request) {
	r.over = true
	for i, each := range s.waiting {
		if each == r {
			s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
			return
		}
	}
	for ref, each := range s.asked {
		if each == r {
			delete(s.asked, ref) // its answer finds nobody
		}
	}
}

func (s *session) sendRequests(now time.Time) {
	if s.phase != ready {
		return
	}
	var later []*request
	for _, r := range s.waiting {
		if r.due.After(now) {
			later = append(later, r)
			continue
		}
		ref := s.expect(s.onResult)
		s.asked[ref] = r
		s.emit(header{kType: tRequest, kRef: ref, kOperation: r.operation, kArguments: r.arguments})
	}
	s.waiting = later
}

func (s *session) onResult(h header, body [][]byte, now time.Time) *Error {
	r := s.asked[h.uint(kRef)]
	delete(s.asked, h.uint(kRef))
	if r == nil {
		return nil
	}
	switch {
	case h.uint(kType) == tError && Action(h.text(kAction)) == Retry:
		r.err = h.error() // told if the time runs out
		r.due = now.Add(backOff(r.tries, backOffMin, time.Second))
		r.tries++
		s.waiting = append(s.waiting, r)
	case h.uint(kType) == tError:
		r.finish(nil, h.error())
	case h.uint(kType) == tResult && len(body) == 1:
		r.finish(body[0], nil)
	default:
		return malformed("a frame of type %d answered a request", h.uint(kType))
	}
	return nil
}

// receive takes in one message; what breaks the protocol costs the connection.
func (s *session) receive(frames [][]byte, now time.Time) {
	s.heard, s.pingOpen = now, false
	var h header
	err := malformed("a message without a header")
	if len(frames) > 0 {
		if h, err = decodeHeader(frames[0]); err == nil {
			err = s.dispatch(h, frames[1:], now)
		}
	}
	if err != nil {
		s.lost(err)
	}
}

func (s *session) dispatch(h header, body [][]byte, now time.Time) *Error {
	kind := h.uint(kType)
	if kind < tWelcome {
		return malformed("a broker does not send frames of type %d", kind)
	}
	if kind == tWelcome {
		return s.welcome(h, now)
	}
	if s.phase == greeting {
		if kind == tError { // an answer to HELLO; anything else is for an earlier socket
			if err := h.error(); err.Action == Retry {
				if err.Code == "session-expired" {
					s.secret = nil
				}
				return err
			} else {
				s.end(err, false)
			}
		}
		return nil
	}
	if s.phase != ready {
		return nil
	}
	if kind == tError {
		if code := h.text(kCode); code == "hello-required" || code == "session-expired" {
			if code == "session-expired" {
				s.secret = nil
			}
			return h.error()
		}
	}
	if h.has(kRef) {
		ref := h.uint(kRef)
		if then := s.answers[ref]; then != nil {
			delete(s.answers, ref)
			return then(h, body, now)
		}
		return nil // nobody waits for it any more: it says nothing about its handle either
	}
	if h.has(kHandle) {
		if target := s.handles[h.uint(kHandle)]; target != nil {
			return target.onFrame(h, body, now)
		}
		return nil
	}
	if kind == tError {
		return h.error() // about the whole connection: everything is asked anew over the next
	}
	return nil
}

func (s *session) welcome(h header, now time.Time) *Error {
	if s.phase != greeting {
		return malformed("a welcome that nobody asked for")
	}
	if h.uint(kVersion) != 1 {
		return malformed("the broker welcomes in a version that was not offered")
	}
	said := map[uint64]uint64{}
	for key, value := range h[kLimits].(map[any]any) {
		number, isNumber := key.(uint64)
		if limit, ok := value.(uint64); ok && isNumber {
			said[number] = limit
		}
	}
	limit := func(key, otherwise uint64) uint64 {
		if value, ok := said[key]; ok {
			return value
		}
		return otherwise
	}
	s.limits = limits{
		limit(1, 1<<20), limit(2, 1<<20), limit(3, 1), limit(4, 1<<20), limit(7, 1<<16), limit(8, 1<<30),
	}
	s.phase = ready
	s.trouble = nil
	s.secret = append([]byte(nil), h[kSession].([]byte)...)
	s.boot = h.uint(kBoot)
	s.heartbeat = time.Duration(max(1, h.uint(kHeartbeat))) * time.Millisecond
	if s.onWelcome != nil {
		s.onWelcome()
	}
	s.sayDepartures(h.flag(kResumed))
	s.sendRequests(now)
	for _, each := range s.handles {
		each.onReady(s, h.flag(kResumed), now)
	}
	return nil
}

// tick does what is due.
func (s *session) tick(now time.Time) {
	switch s.phase {
	case greeting:
		if now.Sub(s.greeted) >= greetingTime {
			s.lost(lost("no welcome within %s", greetingTime))
		}
	case ready:
		if s.pingOpen {
			if now.Sub(s.pinged) >= 2*s.heartbeat {
				s.lost(lost("the broker has been silent for %s", now.Sub(s.heard).Round(time.Millisecond)))
				return
			}
		} else if now.Sub(earlier(s.spoke, s.heard)) >= s.heartbeat {
			s.emit(header{kType: tPing})
			s.pinged, s.spoke, s.pingOpen = now, now, true
		}
		s.sendRequests(now)
		for _, h := range s.handles {
			h.tick(now)
		}
	}
}

// deadline says when tick is wanted next.
func (s *session) deadline(now time.Time) time.Time {
	due := now.Add(never)
	switch s.phase {
	case greeting:
		due = s.greeted.Add(greetingTime)
	case ready:
		if s.pingOpen {
			due = s.pinged.Add(2 * s.heartbeat)
		} else {
			due = earlier(s.spoke, s.heard).Add(s.heartbeat)
		}
		for _, r := range s.waiting {
			due = earlier(due, r.due)
		}
		for _, h := range s.handles {
			if wanted := h.deadline(); !wanted.IsZero() {
				due = earlier(due, wanted)
			}
		}
	}
	return due
}

func earlier(one, other time.Time) time.Time {
	if other.Before(one) {
		return other
	}
	return one
}

// backOff doubles from least up to most.
func backOff(failures int, least, most time.Duration) time.Duration {
	for ; failures > 0 && least < most; failures-- {
		least *= 2
	}
	return min(least, most)
}
