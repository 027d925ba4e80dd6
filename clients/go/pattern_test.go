package ister

import (
	"slices"
	"testing"
)

func TestWhatIsNoPatternIsRefused(t *testing.T) {
	for _, pattern := range []string{"*", ">", "a/*", "a/>", "*/b", "a/*/c/>", "a.b-c_d/*"} {
		if err := checkPattern(pattern); err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	for _, pattern := range []string{"", "a*", "a/b>", ">/a", "a//*", "/*", "*/", "a/../*", "ä/*", "a b/*", string(make([]byte, 201))} {
		if err := checkPattern(pattern); err == nil || err.Code != "invalid-name" || err.Action != Fix {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

func TestTopicsComeAndGoAndThoseThatRefusedAreLeftUntilTheyAreCreatedAnew(t *testing.T) {
	f := newFollowing("letters")
	listed := map[string]uint64{"a": 1, "b": 2, "a.s.dlq": 3, "letters": 4}
	come, gone := f.changes(listed, map[string]uint64{"c": 9})
	if !slices.Equal(come, []string{"a", "b"}) || !slices.Equal(gone, []string{"c"}) {
		t.Fatal(come, gone)
	}
	f.refuse("b", 2)
	if come, gone := f.changes(listed, map[string]uint64{"a": 1}); len(come)+len(gone) != 0 {
		t.Fatal(come, gone)
	}
	listed["b"], listed["a"] = 7, 8 // created anew
	come, gone = f.changes(listed, map[string]uint64{"a": 1})
	if !slices.Equal(come, []string{"a", "b"}) || !slices.Equal(gone, []string{"a"}) {
		t.Fatal(come, gone)
	}
}

func TestTopicsShareTheCredit(t *testing.T) {
	for _, each := range []struct{ messages, size, topics, wantMessages, wantSize int }{
		{0, 0, 1, windowMost, creditBytes}, {0, 0, 4, windowMost / 4, creditBytes / 4}, {10, 0, 20, 1, creditBytes / 20},
		{0, 2048, 100, windowMost / 100, 1024}, {0, 100, 100, windowMost / 100, 100},
	} {
		p := &PatternConsumer{options: ConsumerOptions{CreditMessages: each.messages, CreditBytes: each.size}}
		messages, size := p.shares(each.topics)
		if messages != uint64(each.wantMessages) || size != uint64(each.wantSize) {
			t.Errorf("%v: %d messages, %d bytes", each, messages, size)
		}
	}
}

func TestAShareThatShrinksIsReachedAsMessagesAreTakenAndOneThatGrowsAtOnce(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(100)
	t.opened(header{kOffset: 0})
	given := func() (messages uint64) {
		for _, h := range t.said() {
			messages += h.uint(kMessages)
		}
		return messages
	}
	a.share(40, 1<<19)
	if got := given(); got != 0 {
		t.Fatalf("%d of credit, and it should shrink", got)
	}
	t.deliver(0, numbered(0, 100)...)
	a.next(100, t.now)
	if got := given(); got != 40 {
		t.Fatalf("%d of credit behind 100 messages of a share of 40", got)
	}
	a.share(60, 1<<19)
	if got := given(); got != 20 {
		t.Fatalf("%d of credit for a share that grew by 20", got)
	}
}
