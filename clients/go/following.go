package ister

import (
	"maps"
	"slices"
	"strings"
)

// following decides which of the topics that match a pattern are wanted.
//
// Invariants
//   - dead letters are not followed: a message that is refused would come again, as another topic's
//   - a topic that refused is not tried again before it was created anew
type following struct {
	leftOut string
	refused map[string]uint64
}

const deadLetterSuffix = ".dlq"

func newFollowing(leftOut string) following {
	return following{leftOut: leftOut, refused: map[string]uint64{}}
}

func (f *following) refuse(topic string, created uint64) { f.refused[topic] = created }

// changes says which topics are to be opened and which to be left; all maps say when a topic was created. One that was
// created anew is both.
func (f *following) changes(listed, present map[string]uint64) (come, gone []string) {
	is := func(topics map[string]uint64, topic string, created uint64) bool {
		when, there := topics[topic]
		return there && when == created
	}
	maps.DeleteFunc(f.refused, func(topic string, created uint64) bool { return !is(listed, topic, created) })
	wanted := func(topic string) bool { return !strings.HasSuffix(topic, deadLetterSuffix) && topic != f.leftOut }
	for topic, created := range listed {
		if wanted(topic) && !is(f.refused, topic, created) && !is(present, topic, created) {
			come = append(come, topic)
		}
	}
	for topic, created := range present {
		if !wanted(topic) || !is(listed, topic, created) {
			gone = append(gone, topic)
		}
	}
	slices.Sort(come)
	slices.Sort(gone)
	return come, gone
}
