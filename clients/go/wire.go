package ister

import (
	"encoding/binary"
	"math"

	"github.com/fxamacker/cbor/v2"
)

// Frame types, of section 4 of PROTOCOL.md.
const (
	tHello, tBye, tPing, tOpenProducer, tPublish, tClose, tOpenConsumer = 1, 2, 3, 4, 5, 6, 7
	tCredit, tAck, tNack, tAckUntil, tRequest, tExtend                  = 8, 9, 10, 11, 12, 13
	tWelcome, tOpened, tReceipt, tDeliver, tError, tMoved, tResult      = 33, 34, 35, 36, 37, 38, 39
	tDone, tPong, tEvent                                                = 40, 41, 42
)

// Header keys, of section 3.
const (
	kType, kRef, kHandle, kTopic, kSubscription, kSequence, kOffset, kCount        = 0, 1, 2, 3, 4, 5, 6, 7
	kColumns, kTimestamps, kAttempt, kMessages, kBytes, kRanges, kDelay            = 8, 9, 10, 11, 12, 13, 14
	kReason, kCode, kText, kAction, kEndpoint, kSession, kBoot, kVersion           = 15, 16, 17, 18, 19, 20, 21, 22
	kLimits, kArguments, kProducer, kStart, kReceipts, kSubscriptionType           = 23, 24, 25, 26, 27, 28
	kPriority, kOperation, kClient, kResumed, kHeartbeat, kClosed                  = 29, 30, 31, 32, 33, 34
	kStrategy, kSparse, kForce, kTaken, kSingly, kInstance, kSought                = 35, 36, 37, 38, 39, 40, 41
	columnKeys, columnAttributes, columnTimes                                      = 1, 2, 4
	headerBytesMax, rangesMax                                                      = 8192, 400
	offsetUnknown                                                           uint64 = math.MaxUint64
)

type header map[uint64]any

var encoder, decoder = codec()

func codec() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.EncOptions{
		Sort:          cbor.SortNone,
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty, // null, by default, which is of no kind in a header
	}.EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:       cbor.DupMapKeyEnforcedAPF,
		IndefLength:     cbor.IndefLengthForbidden,
		TagsMd:          cbor.TagsForbidden,
		IntDec:          cbor.IntDecConvertNone,
		MaxNestedLevels: 8,
		DefaultMapType:  nil,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

func encode(value any) []byte {
	data, err := encoder.Marshal(value)
	if err != nil {
		panic(err) // only values of this package are encoded
	}
	return data
}

type keyKind int

const (
	anUint keyKind = iota
	aText
	aBytes
	aBool
	uints
	aMap
	anything
)

var kinds = map[uint64]keyKind{
	kTopic: aText, kSubscription: aText, kTimestamps: uints, kRanges: uints, kReason: aText, kCode: aText,
	kText: aText, kAction: aText, kEndpoint: aText, kSession: aBytes, kVersion: anything, kLimits: aMap,
	kArguments: aMap, kStart: anything, kReceipts: uints, kSubscriptionType: aText, kOperation: aText,
	kClient: aText, kResumed: aBool, kClosed: aBool, kStrategy: aText, kSparse: aBool, kForce: aBool,
	kSingly: aBool, kInstance: aText,
}

var required = map[uint64][]uint64{
	tWelcome: {kVersion, kSession, kBoot, kLimits, kHeartbeat}, tOpened: {kRef, kHandle},
	tReceipt: {kHandle, kReceipts}, tDeliver: {kHandle, kOffset, kCount, kTimestamps},
	tError: {kCode, kText, kAction}, tMoved: {kRef, kHandle, kEndpoint}, tResult: {kRef}, tDone: {kRef},
	tPong: {}, tEvent: {kHandle, kCode},
	// what clients say, so that vectors can be read
	tHello: {kVersion}, tBye: {}, tPing: {}, tOpenProducer: {kRef, kHandle, kTopic, kProducer},
	tPublish: {kHandle, kSequence}, tClose: {kRef, kHandle}, tCredit: {kHandle, kMessages, kBytes},
	tOpenConsumer: {kRef, kHandle, kTopic, kSubscription, kSubscriptionType, kMessages, kBytes},
	tAck:          {kHandle, kRanges}, tNack: {kHandle, kRanges}, tAckUntil: {kHandle, kOffset},
	tRequest: {kRef, kOperation}, tExtend: {kHandle, kRanges},
}

// decodeHeader reads a header strictly, as section 2 says.
func decodeHeader(frame []byte) (header, *Error) {
	if len(frame) == 0 || len(frame) > headerBytesMax {
		return nil, malformed("a header has 1 to %d bytes, not %d", headerBytesMax, len(frame))
	}
	if frame[0]>>5 != 5 {
		return nil, malformed("a header is a map")
	}
	found := header{}
	if err := decoder.Unmarshal(frame, (*map[uint64]any)(&found)); err != nil {
		return nil, malformed("a header is not what PROTOCOL.md says: %v", err)
	}
	kind, ok := found[kType].(uint64)
	if !ok {
		return nil, malformed("a header has no type")
	}
	needed, known := required[kind]
	if !known {
		return nil, &Error{"unknown-operation", Stop, "a frame of an unknown type"}
	}
	for _, key := range needed {
		if _, ok := found[key]; !ok {
			return nil, malformed("a frame of type %d lacks key %d", kind, key)
		}
	}
	for key, value := range found {
		if key > kSought {
			continue
		}
		right := true
		switch kinds[key] {
		case anUint:
			_, right = value.(uint64)
		case aText:
			_, right = value.(string)
		case aBytes:
			_, right = value.([]byte)
		case aBool:
			_, right = value.(bool)
		case uints:
			var list []any
			if list, right = value.([]any); right {
				flat := make([]uint64, len(list))
				for i, each := range list {
					if flat[i], right = each.(uint64); !right {
						break
					}
				}
				if key != kVersion && len(flat)%2 != 0 {
					right = false
				}
				found[key] = flat
			}
		case aMap:
			_, right = value.(map[any]any)
		case anything:
			switch value.(type) {
			case uint64, string, []any:
			default:
				right = false
			}
		}
		if !right {
			return nil, malformed("key %d of a frame of type %d has a value of another kind", key, kind)
		}
	}
	return found, nil
}

func (h header) uint(key uint64) uint64 { value, _ := h[key].(uint64); return value }
func (h header) text(key uint64) string { value, _ := h[key].(string); return value }
func (h header) flag(key uint64) bool   { value, _ := h[key].(bool); return value }
func (h header) uints(key uint64) []uint64 {
	value, _ := h[key].([]uint64)
	return value
}
func (h header) has(key uint64) bool { _, ok := h[key]; return ok }
func (h header) error() *Error {
	return &Error{h.text(kCode), Action(h.text(kAction)), h.text(kText)}
}

func mismatch(what string) *Error {
	return &Error{"lengths-mismatch", Stop, "the lengths of " + what + " do not add up"}
}

// content is one message without its place: what a batch is made of and cut into.
type content struct {
	payload    []byte
	key        []byte
	attributes map[string]string
	encoded    []byte // the attributes, of a message to be sent
	deliverAt  uint64
}

// packBatch makes the body frames of messages.
func packBatch(messages []content) (columns uint64, body [][]byte) {
	made := newGathering(len(messages), 0)
	for i := range messages {
		made.add(&messages[i], made.wouldBe(&messages[i]))
	}
	columns, body = made.seal()
	if len(body) == 1 {
		body = [][]byte{lengthOf(body[0]), body[0]}
	}
	return columns, body
}

func lengthOf(payload []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
}

// cutBatch takes the body of a DELIVER apart.
func cutBatch(columns uint64, count int, body [][]byte) ([]content, *Error) {
	if count == 0 || len(body) < 2 || len(body[0]) != lengthBytes*count {
		return nil, malformed("%d messages with columns %d have %d body frames", count, columns, len(body))
	}
	n := uint64(count)
	d := delivery{owner: &attachment{}, count: count, ranges: []uint64{0, n}, stamps: []uint64{n, 0}}
	if err := d.cut(columns, body); err != nil {
		return nil, err
	}
	messages := make([]content, count)
	for i := range messages {
		var each Message
		d.fill(&each)
		if each.broken != nil {
			return nil, each.broken
		}
		messages[i] = content{payload: each.Payload, key: each.Key, attributes: each.Attributes}
		if d.deliverAt != nil {
			messages[i].deliverAt = binary.LittleEndian.Uint64(d.deliverAt[timeBytes*i:])
		}
	}
	return messages, nil
}
