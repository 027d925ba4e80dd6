package ister

import (
	"testing"
	"time"
)

// asked returns the last REF of a type that was said.
func (t *talk) asked(said []header, kind uint64) uint64 {
	t.Helper()
	for i := len(said) - 1; i >= 0; i-- {
		if said[i].uint(kType) == kind {
			return said[i].uint(kRef)
		}
	}
	t.Fatalf("nothing of type %d was said: %v", kind, said)
	return 0
}

func closes(said []header) (found []uint64) {
	for _, h := range said {
		if h.uint(kType) == tClose {
			found = append(found, h.uint(kHandle))
		}
	}
	return found
}

// ISTER-4.1-8
func TestAnErrorWithARefNobodyWaitsForSaysNothingAboutItsHandle(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p, a := t.producer(), t.consumer(4)
	for _, h := range t.said() {
		t.hear(header{kType: tOpened, kRef: h.uint(kRef), kHandle: h.uint(kHandle), kStrategy: "reliable"})
	}
	for _, code := range []string{"closed", "unknown-handle", "limit-exceeded"} {
		for _, number := range []uint64{1, 2} {
			t.refuse(code, Stop, header{kRef: uint64(999), kHandle: number})
			t.refuse(code, Stop, header{kRef: uint64(999), kHandle: number, kClosed: true})
		}
		t.refuse(code, Stop, header{kRef: uint64(999)})
	}
	if t.s.phase != ready || p.phase != pubOpen || a.phase != pubOpen || p.err != nil || a.complaint != nil {
		t.Fatalf("session %v, producer %v (%v), consumer %v (%v)", t.s.phase, p.phase, p.err, a.phase, a.complaint)
	}
}

// ISTER-4.1-8
func TestTheAnswerToAnOpenThatWasReplacedSaysNothingAboutTheSecond(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p, a := t.producer(), t.consumer(4)
	first := t.said()
	for _, number := range []uint64{1, 2} { // the topic failed while both were being opened
		t.refuse("unavailable", Retry, header{kHandle: number, kClosed: true})
	}
	t.now = t.now.Add(time.Second)
	t.s.tick(t.now)
	second := t.said()
	for _, h := range first {
		t.refuse("closed", Stop, header{kRef: h.uint(kRef), kHandle: h.uint(kHandle)})
	}
	if p.phase != pubOpening || a.phase != pubOpening {
		t.Fatalf("producer %v (%v), consumer %v (%v)", p.phase, p.err, a.phase, a.err)
	}
	for _, h := range second {
		t.hear(header{kType: tOpened, kRef: h.uint(kRef), kHandle: h.uint(kHandle), kStrategy: "reliable"})
	}
	if p.phase != pubOpen || a.phase != pubOpen {
		t.Fatalf("producer %v (%v), consumer %v (%v)", p.phase, p.err, a.phase, a.err)
	}
}

// ISTER-8.4-4
func TestAHandleUnknownAtAPublishIsOpenedAgainAndTheBatchSentAgain(test *testing.T) {
	for _, more := range []header{{}, {kClosed: true}} {
		t := newTalk(test)
		t.welcome(false)
		p := t.producer()
		t.opened(header{kSequence: 0, kBytes: 1000})
		one := t.send(p, "one")
		t.send(p, "two")
		p.seal()
		t.said()
		for sequence := range uint64(2) {
			about := header{kHandle: uint64(1), kSequence: sequence}
			for key, value := range more {
				about[key] = value
			}
			t.refuse("unknown-handle", Fix, about)
		}
		t.now = t.now.Add(time.Second)
		t.s.tick(t.now)
		t.opened(header{kSequence: 0, kBytes: 1000})
		if sent := publishes(t.said()); one.over || !same(sent, []uint64{0, 1}) {
			t.Fatal(one.err, sent)
		}
	}
}

// ISTER-4.1-1
func TestNoRefIsUsedTwiceInASessionThatWasLeftAndResumed(test *testing.T) {
	client := &Client{}
	refs := map[uint64]bool{}
	for range 3 { // each time a connection is made anew to where the session is
		t := &talk{test, newSession("test", &client.refs), time.Unix(1000, 0)}
		t.welcome(true)
		t.producer()
		ref := t.asked(t.said(), tOpenProducer)
		if refs[ref] {
			t.Fatalf("the REF %d was used before", ref)
		}
		refs[ref] = true
	}
}

// ISTER-7.4-7
func TestWhatWasClosingWhenTheConnectionBrokeIsClosedInTheResumedSession(test *testing.T) {
	for _, resumed := range []bool{true, false} {
		t := newTalk(test)
		t.welcome(false)
		p, a := t.producer(), t.consumer(4)
		for _, h := range t.said() {
			t.hear(header{kType: tOpened, kRef: h.uint(kRef), kHandle: h.uint(kHandle), kStrategy: "reliable"})
		}
		p.close()
		a.close()
		if got := closes(t.said()); !same(got, []uint64{1, 2}) {
			t.Fatal(got)
		}
		t.s.lost(lost("a test"))
		t.s.detach(p)
		t.s.detach(a)
		t.welcome(resumed)
		said := t.said()
		wanted := []uint64{1, 2}
		if !resumed {
			wanted = nil // nobody holds them any more
		}
		if got := closes(said); !same(got, wanted) {
			t.Fatalf("resumed %v: %v closed", resumed, got)
		}
		for _, h := range said {
			t.hear(header{kType: tDone, kRef: h.uint(kRef)})
		}
		t.s.lost(lost("a test"))
		t.welcome(true)
		if got := closes(t.said()); len(got) > 0 {
			t.Fatalf("%v closed again", got)
		}
	}
}

// ISTER-7.4-7
func TestWhatWasClosedWithoutAConnectionIsClosedInTheResumedSessionBeforeAnythingIsOpened(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(4)
	t.opened(header{kOffset: 0})
	t.s.lost(lost("a test"))
	a.close()
	t.s.detach(a)
	t.producer()
	t.welcome(true)
	said := t.said()
	if got := closes(said); !same(got, []uint64{2}) || said[0].uint(kType) != tClose {
		t.Fatal(said)
	}
}

// ISTER-7.4-7
func TestACloseThatNobodyWaitsForAnyMoreIsRepeatedInTheResumedSession(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(4)
	t.opened(header{kOffset: 0})
	a.close() // its program gave up waiting, and the connection broke before DONE
	a.fail(closedError("the consumer"))
	t.s.detach(a)
	t.s.lost(lost("a test"))
	t.said()
	t.welcome(true)
	if got := closes(t.said()); !same(got, []uint64{2}) {
		t.Fatal(got)
	}
}

// ISTER-9.2-9
func TestAReaderThatHasReceivedNothingOpensAgainWhereItBegan(test *testing.T) {
	for strategy, wanted := range map[string]any{"reliable": uint64(7), "non-reliable": "latest"} {
		t := newTalk(test)
		t.welcome(false)
		a := &attachment{handle: 2, topic: "orders", subscription: "r", kind: "reader", start: "latest", changed: func() {}}
		t.s.attach(a, t.now)
		t.opened(header{kOffset: 7, kStrategy: strategy})
		for _, offset := range []int{9, 11} { // where the topic ends meanwhile
			t.s.lost(lost("a test"))
			t.welcome(true)
			said := t.said()
			if got := said[len(said)-1][kStart]; got != wanted {
				t.Fatalf("%s: opened again at %v", strategy, got)
			}
			t.hear(header{
				kType: tOpened, kRef: said[len(said)-1].uint(kRef), kHandle: 2, kOffset: offset, kStrategy: strategy,
			})
		}
	}
}

// ISTER-9.3-2
func TestAcknowledgmentsOfASubscriptionThatWasMadeAnewMeanwhileAreNotSent(test *testing.T) {
	for _, instance := range []string{"one", "two"} { // what is there when the connection is made again
		t := newTalk(test)
		t.welcome(false)
		a := t.consumer(10)
		t.opened(header{kOffset: 0, kInstance: "one"})
		t.deliver(0, "a", "b", "c")
		came := a.next(3, t.now)
		a.ack(came[:1], t.now)
		a.flush(false)
		t.s.lost(lost("a test"))
		t.welcome(true)
		said := t.said()
		open := said[len(said)-1]
		if open.text(kInstance) != "one" {
			t.Fatal(open)
		}
		t.hear(header{
			kType: tOpened, kRef: open.uint(kRef), kHandle: 2, kOffset: 3, kStrategy: "reliable", kInstance: instance,
		})
		a.ack(came[1:], t.now)
		a.flush(false)
		acked := []uint64{}
		for _, h := range t.said() {
			if h.uint(kType) == tAck {
				acked = append(acked, h.uints(kRanges)...)
			}
		}
		same := instance == "one"
		if (len(acked) > 0) != same || a.forgotten == same || a.phase != pubOpen {
			t.Fatalf("%s: acknowledged %v, forgotten %v", instance, acked, a.forgotten)
		}
	}
}

// ISTER-9.3-2
func TestAReaderEndsWhereItsTopicWasMadeAnewMeanwhile(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := &attachment{handle: 2, topic: "orders", subscription: "r", kind: "reader", start: "latest", changed: func() {}}
	t.s.attach(a, t.now)
	t.opened(header{kOffset: 7, kInstance: "one"})
	t.s.lost(lost("a test"))
	t.welcome(true)
	t.opened(header{kOffset: 7, kInstance: "two"})
	if a.err == nil || a.err.Code != "topic-deleted" {
		t.Fatal(a.phase, a.err)
	}
	if got := closes(t.said()); !same(got, []uint64{2}) {
		t.Fatalf("%v closed", got)
	}
}

// ISTER-7.4-7
func TestAHandleIsClosedInTheResumedSessionHoweverLateItsProgramHearsOfTheLoss(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(4)
	t.opened(header{kOffset: 0})
	a.close()
	t.s.lost(lost("a test"))
	t.welcome(true) // the program has not come to take it away yet
	if got := closes(t.said()); !same(got, []uint64{2}) {
		t.Fatal(got)
	}
	t.s.detach(a)
}

// ISTER-7.4-8
func TestWhatComesBackToASessionIsNotClosedThere(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a, b := t.consumer(4), t.producer()
	t.said()
	t.s.lost(lost("a test"))
	t.s.detach(a) // to ask elsewhere
	t.s.detach(b)
	t.s.attach(a, t.now)
	t.welcome(true)
	said := t.said()
	if got := closes(said); !same(got, []uint64{1}) {
		t.Fatal(said)
	}
	t.asked(said, tOpenConsumer)
}
