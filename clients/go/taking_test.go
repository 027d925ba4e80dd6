package ister

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// taken returns what was said last of what the program has taken, and whether a REF asked for an answer.
func (t *talk) taken() (taken uint64, ref uint64) {
	for _, h := range t.said() {
		if h.uint(kType) == tCredit && h.has(kTaken) {
			if h.uint(kTaken) < taken {
				t.Fatalf("TAKEN fell to %d", h.uint(kTaken))
			}
			taken, ref = h.uint(kTaken), h.uint(kRef)
		}
	}
	return taken, ref
}

func payloads(messages []*Message) (found []string) {
	for _, each := range messages {
		found = append(found, string(each.Payload))
	}
	return found
}

func numbered(first, end int) (found []string) {
	for ; first < end; first++ {
		found = append(found, fmt.Sprint(first))
	}
	return found
}

// ISTER-9.6-1
func TestABrokerThatDoesNotAskIsNotToldWhatIsTaken(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0})
	t.deliver(0, numbered(0, 10)...)
	for a.nextOne(t.now) != nil {
	}
	for _, h := range t.said() {
		if h.has(kTaken) {
			t.Fatal(h)
		}
	}
}

// ISTER-9.6-2
func TestTheBrokerIsToldBeforeAMessageIsHandedOutAndNoMoreThanAMomentAhead(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(0)
	a.window = 100
	t.opened(header{kOffset: 0, kTaken: 0})
	t.deliver(0, numbered(0, 100)...)
	handed, told := uint64(0), uint64(0)
	for each := time.Duration(0); ; each++ { // a program that takes 2 ms over each message: two are a moment's work
		message := a.nextOne(t.now)
		if message == nil {
			break
		}
		handed++
		if now, _ := t.taken(); now > 0 {
			told = now
		}
		if told < handed || told > handed+2 {
			t.Fatalf("%d handed out, %d told", handed, told)
		}
		t.now = t.now.Add(2 * time.Millisecond)
	}
	if handed != 100 {
		t.Fatal(handed)
	}
}

// ISTER-9.6-2
func TestAQuickProgramTakesManyMessagesWithOneReport(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(1000)
	t.opened(header{kOffset: 0, kTaken: 0})
	reports := 0
	for first := uint64(0); first < 100_000; first += 500 {
		t.deliver(first, numbered(0, 500)...)
		for a.nextOne(t.now) != nil {
			t.now = t.now.Add(100 * time.Nanosecond)
		}
		for _, h := range t.said() {
			if h.has(kTaken) {
				reports++
			}
		}
	}
	if reports > 1000 { // credit goes back with them
		t.Fatalf("%d reports of 100,000 messages", reports)
	}
}

// ISTER-9.6-2
func TestAcknowledgmentsAreSentBeforeTheNextMessageIsTaken(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0, kTaken: 0})
	t.deliver(0, "a", "b")
	a.ack([]*Message{a.nextOne(t.now)}, t.now)
	t.said()
	t.now = t.now.Add(time.Second)
	a.nextOne(t.now)
	said := t.said()
	if len(said) != 2 || said[0].uint(kType) != tAck || said[1].uint(kTaken) != 2 {
		t.Fatal(said)
	}
}

// ISTER-9.6-5, ISTER-9.6-9
func TestWhatComesSinglyIsHandedOutOnceTheBrokerKnowsAndSoIsTheFirstBehind(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0, kTaken: 0})
	t.hear(header{
		kType: tDeliver, kHandle: 2, kOffset: 0, kCount: 2, kTimestamps: []uint64{2, 5}, kSingly: true,
	}, []byte{1, 0, 0, 0, 1, 0, 0, 0}, []byte("ab"))
	t.deliver(2, "c", "d")
	for i, payload := range []string{"a", "b", "c"} {
		if message := a.nextOne(t.now); message != nil {
			t.Fatalf("%q was handed out before the broker knew", message.Payload)
		}
		taken, ref := t.taken()
		if taken != uint64(i+1) || ref == 0 || a.hasSome() {
			t.Fatal(taken, ref)
		}
		if a.nextOne(t.now) != nil || len(t.said()) != 0 {
			t.Fatal("asked twice")
		}
		t.hear(header{kType: tDone, kRef: ref})
		message := a.nextOne(t.now)
		if message == nil || string(message.Payload) != payload {
			t.Fatal(message)
		}
		a.ack([]*Message{message}, t.now)
	}
	if message := a.nextOne(t.now); message == nil || string(message.Payload) != "d" {
		t.Fatal(message)
	}
}

// ISTER-9.6-5
func TestAMessageThatIsNotToBeTakenIsAskedForAgain(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0, kTaken: 0})
	t.hear(header{kType: tDeliver, kHandle: 2, kOffset: 0, kCount: 1, kTimestamps: []uint64{1, 5}, kSingly: true},
		[]byte{1, 0, 0, 0}, []byte("a"))
	a.nextOne(t.now)
	_, ref := t.taken()
	t.refuse("unavailable", Retry, header{kRef: ref, kHandle: uint64(2)})
	if a.nextOne(t.now) != nil {
		t.Fatal("handed out without leave")
	}
	_, again := t.taken()
	if again == 0 || again == ref {
		t.Fatal(again)
	}
	t.hear(header{kType: tDone, kRef: again})
	if a.nextOne(t.now) == nil {
		t.Fatal("not handed out")
	}
}

// ISTER-9.6-6
func TestWhatWasRecalledIsDroppedAndCountsAndAllCreditIsGivenWhenTheProgramAsks(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(20)
	t.opened(header{kOffset: 0, kTaken: 0})
	t.deliver(0, numbered(0, 10)...)
	held := a.nextOne(t.now)
	t.said()
	t.now = t.now.Add(time.Second)
	t.hear(header{kType: tEvent, kHandle: 2, kCode: "recalled"})
	if said := t.said(); len(said) != 0 {
		t.Fatalf("credit before the program asked: %v", said)
	}
	if message := a.nextOne(t.now); message != nil {
		t.Fatalf("%q was recalled", message.Payload)
	}
	said := t.said()
	if len(said) != 1 || said[0].uint(kMessages) != 20 || said[0].uint(kBytes) != 1<<20 {
		t.Fatal(said)
	}
	t.deliver(10, "after")
	if message := a.nextOne(t.now); message == nil || string(message.Payload) != "after" {
		t.Fatal(message)
	}
	if taken, _ := t.taken(); taken != 11 {
		t.Fatal(taken)
	}
	a.ack([]*Message{held}, t.now) // it is still the program's
	a.flush(false)
	if said := t.said(); len(said) != 1 || !same(said[0].uints(kRanges), []uint64{0, 1}) {
		t.Fatal(said)
	}
}

// ISTER-9.7-3
func TestWhatTheProgramMayTakeWithoutAskingIsTakenBackWhenTheSubscriptionMoves(test *testing.T) {
	for name, happens := range map[string]func(t *talk){
		"sought":   func(t *talk) { t.hear(header{kType: tEvent, kHandle: 2, kCode: "sought", kOffset: 0}) },
		"recalled": func(t *talk) { t.hear(header{kType: tEvent, kHandle: 2, kCode: "recalled"}) },
		"lost":     func(t *talk) { t.s.lost(lost("a test")) },
		"ended":    func(t *talk) { t.refuse("taken-over", Stop, header{kHandle: uint64(2), kClosed: true}) },
	} {
		t := newTalk(test)
		t.welcome(false)
		a := t.consumer(100)
		t.opened(header{kOffset: 0}) // without TAKEN all that came together may be taken
		t.deliver(0, numbered(0, 50)...)
		if a.nextOne(t.now) == nil || a.quick() == nil {
			t.Fatal("nothing to take")
		}
		happens(t)
		if message := a.quick(); message != nil {
			t.Errorf("%s: %q was taken behind it", name, message.Payload)
		}
	}
}

// ISTER-9.7-3
func TestAllCreditOfWhatWasDroppedAtAMoveComesBack(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(100)
	t.opened(header{kOffset: 0})
	t.deliver(0, numbered(0, 50)...)
	t.deliver(50, numbered(0, 30)...)
	a.next(3, t.now)
	given, size := uint64(0), uint64(0)
	t.hear(header{kType: tEvent, kHandle: 2, kCode: "sought", kOffset: 0})
	for _, h := range t.said() {
		given, size = given+h.uint(kMessages), size+h.uint(kBytes)
	}
	if given != 80 || size != 4*80+(10+2*40)+(10+2*20) {
		t.Fatal(given, size)
	}
}

// ISTER-9.6-7
func TestAProgramThatFailsSaysWhatItHas(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0, kTaken: 0})
	t.deliver(0, "a", "b", "c")
	a.next(2, t.now)
	t.said()
	a.fails("it crashed")
	said := t.said()
	if len(said) != 1 || said[0].uint(kType) != tNack || said[0].uint(kTaken) != 2 || len(said[0].uints(kRanges)) != 0 {
		t.Fatal(said)
	}
}

func TestWhatTheProgramCouldTakeSinglyIsAmongWhatItTakesTogether(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(100)
	t.opened(header{kOffset: 0})
	t.deliver(0, numbered(0, 10)...)
	one := a.nextOne(t.now)
	together := a.next(4, t.now)
	batch := a.nextBatch(3, t.now)
	two := a.nextOne(t.now)
	all := append([]*Message{one}, together...)
	all = append(append(all, batch.Messages()...), two)
	if got := payloads(all); !slices.Equal(got, numbered(0, 9)) {
		t.Fatal(got)
	}
	if a.handed != 10 || a.quick() == nil || a.quick() != nil {
		t.Fatal(a.handed)
	}
}

func TestABatchHasTheMessagesThatCame(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(100)
	t.opened(header{kOffset: 0})
	_, body := packBatch([]content{
		{payload: []byte("a")}, {payload: []byte("bb"), key: []byte("k")}, {payload: nil},
		{payload: []byte("d"), encoded: encode(map[string]string{"x": "y"})}, {payload: []byte("e"), deliverAt: 9},
	})
	t.hear(header{
		kType: tDeliver, kHandle: 2, kOffset: 3, kCount: 5, kTimestamps: []uint64{2, 5, 3, 6}, kAttempt: 2,
		kRanges: []uint64{3, 5, 9, 10, 20, 22}, kColumns: 7,
	}, body...)
	first, rest := a.nextBatch(2, t.now), a.nextBatch(9, t.now)
	var got []string
	for _, batch := range []*Batch{first, rest} {
		for payload := range batch.Payloads() {
			got = append(got, string(payload))
		}
	}
	if !slices.Equal(got, []string{"a", "bb", "", "d", "e"}) || first.Len() != 2 || rest.Len() != 3 {
		t.Fatal(got)
	}
	var offsets, times []uint64
	for range 2 { // as often as wanted
		offsets, times = nil, nil
		for _, message := range append(first.Messages(), rest.Messages()...) {
			offsets = append(offsets, message.Offset)
			times = append(times, uint64(message.Timestamp.UnixMilli()))
		}
	}
	if !same(offsets, []uint64{3, 4, 9, 20, 21}) || !same(times, []uint64{5, 5, 6, 6, 6}) {
		t.Fatal(offsets, times)
	}
	last := rest.Messages()
	if string(first.Messages()[1].Key) != "k" || last[1].Attributes["x"] != "y" || last[2].DeliverAt.UnixMilli() != 9 {
		t.Fatal(last)
	}
	t.said()
	a.ackSpans(rest.part, rest.spans(), t.now)
	a.flush(false)
	if said := t.said(); len(said) != 1 || !same(said[0].uints(kRanges), []uint64{9, 10, 20, 22}) {
		t.Fatal(said)
	}
}

func TestAcknowledgmentsInOrderAreOneRangeWhateverTheyCameWith(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(100)
	t.opened(header{kOffset: 0})
	t.deliver(0, numbered(0, 5)...)
	t.deliver(5, numbered(0, 5)...)
	var all []*Message
	for message := a.nextOne(t.now); message != nil; message = a.nextOne(t.now) {
		all = append(all, message)
	}
	for _, i := range []int{0, 1, 2, 6, 5, 3, 4, 9} {
		if !a.quickAck(all[i]) {
			a.ack(all[i:i+1], t.now)
		}
	}
	t.said()
	a.flush(false)
	if said := t.said(); len(said) != 1 || !same(said[0].uints(kRanges), []uint64{0, 7, 9, 10}) {
		t.Fatal(said)
	}
}

// ISTER-9.5-8
func TestOnANonReliableTopicNothingIsAcknowledgedAndAllIsSettled(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	for _, h := range t.said() {
		t.hear(header{kType: tOpened, kRef: h.uint(kRef), kHandle: 2, kOffset: 0, kStrategy: "non-reliable"})
	}
	t.deliver(0, "a", "b")
	came := a.next(2, t.now)
	t.said()
	a.ack(came, t.now)
	a.nack(came, nil, "")
	a.flush(true)
	if said := t.said(); len(said) != 0 || !a.settled() {
		t.Fatal(said)
	}
}

func TestAReaderTakesWhatItHasInHandToItsEndWhenTheConnectionIsLost(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := &attachment{handle: 2, topic: "orders", subscription: "r", kind: "reader", start: "earliest", changed: func() {}}
	t.s.attach(a, t.now)
	t.opened(header{kOffset: 0})
	t.deliver(0, numbered(0, 5)...)
	t.deliver(5, numbered(5, 10)...)
	a.nextOne(t.now)
	t.s.lost(lost("a test"))
	t.welcome(true)
	said := t.said()
	if got := said[len(said)-1].uint(kStart); got != 5 {
		t.Fatalf("opened again at %d", got)
	}
	for want := 1; want < 5; want++ {
		if message := a.quick(); message == nil || message.Offset != uint64(want) {
			t.Fatal(message)
		}
	}
	if message := a.quick(); message != nil {
		t.Fatal(message)
	}
}

// ISTER-2.3-2
func TestAttributesThatAreNoneCostTheirMessageAloneItsAttributes(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0})
	_, body := packBatch([]content{
		{payload: []byte("bad"), encoded: []byte{0xff}},
		{payload: []byte("good"), encoded: encode(map[string]string{"a": "b"})},
	})
	t.hear(header{
		kType: tDeliver, kHandle: 2, kOffset: 0, kCount: 2, kTimestamps: []uint64{2, 5}, kColumns: columnAttributes,
	}, body...)
	came := a.next(2, t.now)
	if t.s.phase != ready || len(came) != 2 {
		t.Fatal(t.s.phase, came)
	}
	if came[0].AttributesError() == nil || came[1].AttributesError() != nil || came[1].Attributes["a"] != "b" {
		t.Fatal(came[0], came[1])
	}
}

func TestDamageIsToldOnceWhatCameBeforeItIsTaken(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	receiver := &Receiver{a: a}
	t.opened(header{kOffset: 0})
	t.deliver(0, "before")
	t.hear(header{kType: tEvent, kHandle: 2, kCode: "log-damaged", kText: "bytes are not what was written", kCount: 1})
	if a.nextOne(t.now) == nil || a.nextOne(t.now) != nil {
		t.Fatal("what came before was not handed out")
	}
	if err := receiver.check(); err != nil {
		t.Fatal("told to who acknowledges", err)
	}
	if err := receiver.why(); err == nil || err.Code != "log-damaged" {
		t.Fatal(err)
	}
	if err := receiver.why(); err != nil {
		t.Fatal(err)
	}
}

// ISTER-7.4-6
func TestAcknowledgmentsOfWhatAnotherSessionDeliveredAreNotRepeated(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0})
	t.deliver(0, "a")
	a.ack(a.next(1, t.now), t.now)
	a.flush(false)
	other := newTalk(test)
	other.welcome(true) // a session that was left there, and is resumed
	other.s.secret = []byte("another session!")
	t.s.detach(a)
	a.onLost(lost("moved"))
	other.s.adopt(a)
	a.onReady(other.s, true, other.now)
	for _, h := range other.said() {
		if h.uint(kType) == tAck {
			t.Fatal(h)
		}
	}
	if !a.forgotten {
		t.Fatal("nobody is told")
	}
}

// ISTER-9.4-9
func TestNoCreditComesBackForWhatWasDeliveredBeforeTheReaderOpenedAgain(test *testing.T) {
	for _, together := range []bool{true, false} {
		t := newTalk(test)
		t.welcome(false)
		a := &attachment{
			handle: 2, topic: "orders", subscription: "r", kind: "reader", start: "earliest", fixed: 10, changed: func() {},
		}
		t.s.attach(a, t.now)
		t.opened(header{kOffset: 0})
		t.deliver(0, numbered(0, 8)...)
		a.nextOne(t.now)
		t.s.lost(lost("a test"))
		t.welcome(true)
		t.opened(header{kOffset: 8})
		var came []string
		for len(came) < 7 {
			if together {
				came = append(came, payloads(a.next(3, t.now))...)
			} else {
				came = append(came, payloads([]*Message{a.quick()})...)
			}
		}
		if a.next(3, t.now) != nil || !slices.Equal(came, numbered(1, 8)) {
			t.Fatal(came)
		}
		for _, h := range t.said() {
			if h.uint(kType) == tCredit && (h.uint(kMessages) > 0 || h.uint(kBytes) > 0) {
				t.Fatalf("together %v: %v", together, h)
			}
		}
		t.deliver(8, numbered(8, 16)...)
		given := uint64(0)
		for a.nextOne(t.now) != nil {
		}
		a.asked(t.now)
		for _, h := range t.said() {
			given += h.uint(kMessages)
		}
		if given != 8 {
			t.Fatalf("together %v: %d of credit for 8 messages", together, given)
		}
	}
}

// ISTER-7.4-9
func TestAcknowledgmentsThatAreNotKnownToBeWrittenAreSaidBeforeTheCloseInTheResumedSession(test *testing.T) {
	for name, closes := range map[string]func(t *talk, a *attachment){
		"closed while there was no connection": func(t *talk, a *attachment) {
			t.s.lost(lost("a test"))
			a.close()
			t.s.detach(a)
		},
		"closed when the connection broke": func(t *talk, a *attachment) {
			a.close()
			t.s.lost(lost("a test"))
			t.s.detach(a)
		},
	} {
		for _, resumed := range []bool{true, false} {
			t := newTalk(test)
			t.welcome(false)
			a := t.consumer(10)
			t.opened(header{kOffset: 0})
			t.deliver(0, "a", "b", "c", "d")
			came := a.next(4, t.now)
			a.ack(came[:2], t.now)
			a.flush(false)
			a.ack(came[3:], t.now)
			closes(t, a)
			t.s.outbox = nil
			t.welcome(resumed)
			said := t.said()
			if !resumed {
				if len(said) != 0 {
					t.Fatalf("%s, in a new session: %v", name, said)
				}
				continue
			}
			if len(said) != 2 || !same(said[0].uints(kRanges), []uint64{0, 2, 3, 4}) || said[1].uint(kType) != tClose {
				t.Fatalf("%s: %v", name, said)
			}
			t.hear(header{kType: tDone, kRef: said[1].uint(kRef)})
			t.s.lost(lost("a test"))
			t.welcome(true)
			if said := t.said(); len(said) != 0 {
				t.Fatalf("%s, again: %v", name, said)
			}
		}
	}
}

// ISTER-12-5
func TestALimitThatIsMissingIsNotTakenForNone(test *testing.T) {
	t := newTalk(test)
	t.s.connect(t.now)
	t.said()
	t.hear(header{
		kType: tWelcome, kVersion: 1, kSession: make([]byte, 16), kBoot: 1, kHeartbeat: 1000, kLimits: map[uint64]uint64{},
	})
	p, a := t.producer(), t.consumer(0)
	if said := t.said(); len(said) != 2 {
		t.Fatal(said)
	}
	limits := t.s.limits
	if t.s.phase != ready || limits.messageBytesMax == 0 || limits.messageBytesMax > 4<<20 || limits.batchBytesMax == 0 ||
		limits.batchBytesMax > 4<<20 || limits.windowBytes > 8<<20 || limits.batchesInFlightMax != 1 ||
		a.window > limits.creditMessagesMax || p.err != nil {
		t.Fatal(limits)
	}
}

// ISTER-9.7-3
func TestAnAcknowledgmentBehindAMoveIsNoLossToTellOf(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0})
	t.deliver(0, "a")
	came := a.next(1, t.now)
	t.hear(header{kType: tEvent, kHandle: 2, kCode: "sought", kOffset: 0})
	a.ack(came, t.now) // its message was asked for again
	if a.forgotten || !a.settled() {
		t.Fatal("told as lost")
	}
	t.s.lost(lost("a test"))
	t.welcome(false)
	t.opened(header{kOffset: 0})
	t.deliver(0, "a")
	came = a.next(1, t.now)
	t.refuse("unavailable", Retry, header{kHandle: uint64(2), kClosed: true})
	a.ack(came, t.now) // and this one the broker has forgotten
	if !a.forgotten {
		t.Fatal("not told")
	}
}
