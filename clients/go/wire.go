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

// cut takes items apart that lie end to end.
func cut(table, items []byte, count int, what string) ([][]byte, *Error) {
	if len(table) != 4*count {
		return nil, mismatch(what)
	}
	found := make([][]byte, count)
	at := uint64(0)
	for i := range found {
		end := at + uint64(binary.LittleEndian.Uint32(table[4*i:]))
		if end > uint64(len(items)) {
			return nil, mismatch(what)
		}
		found[i] = items[at:end:end]
		at = end
	}
	if at != uint64(len(items)) {
		return nil, mismatch(what)
	}
	return found, nil
}

func cutColumn(column []byte, count int, what string) ([][]byte, *Error) {
	if len(column) < 4*count {
		return nil, mismatch(what)
	}
	return cut(column[:4*count], column[4*count:], count, what)
}

func pack(items [][]byte) (table, joined []byte) {
	size := 0
	for _, item := range items {
		size += len(item)
	}
	table, joined = make([]byte, 0, 4*len(items)), make([]byte, 0, size)
	for _, item := range items {
		table = binary.LittleEndian.AppendUint32(table, uint32(len(item)))
		joined = append(joined, item...)
	}
	return table, joined
}

// content is one message without its place: what a batch is made of and cut into.
type content struct {
	payload    []byte
	key        []byte
	attributes map[string]string
	deliverAt  uint64
}

// packBatch makes the body frames of messages.
func packBatch(messages []content) (columns uint64, body [][]byte) {
	payloads, keys, attributes := make([][]byte, len(messages)), make([][]byte, len(messages)), make([][]byte, len(messages))
	times := make([]byte, 0)
	for i, message := range messages {
		payloads[i], keys[i] = message.payload, message.key
		if len(message.key) > 0 {
			columns |= columnKeys
		}
		if len(message.attributes) > 0 {
			columns |= columnAttributes
			attributes[i] = encode(message.attributes)
		}
		if message.deliverAt > 0 {
			columns |= columnTimes
		}
		times = binary.LittleEndian.AppendUint64(times, message.deliverAt)
	}
	table, joined := pack(payloads)
	body = [][]byte{table, joined}
	if columns&columnKeys != 0 {
		table, joined = pack(keys)
		body = append(body, append(table, joined...))
	}
	if columns&columnAttributes != 0 {
		table, joined = pack(attributes)
		body = append(body, append(table, joined...))
	}
	if columns&columnTimes != 0 {
		body = append(body, times)
	}
	return columns, body
}

// cutBatch takes the body of a DELIVER apart.
func cutBatch(columns uint64, count int, body [][]byte) ([]content, *Error) {
	wanted := 2
	for _, bit := range []uint64{columnKeys, columnAttributes, columnTimes} {
		if columns&bit != 0 {
			wanted++
		}
	}
	if columns > 7 || len(body) != wanted || count == 0 {
		return nil, malformed("%d messages with columns %d have %d body frames", count, columns, len(body))
	}
	payloads, err := cut(body[0], body[1], count, "a batch")
	if err != nil {
		return nil, err
	}
	messages := make([]content, count)
	for i, payload := range payloads {
		messages[i].payload = payload
	}
	rest := body[2:]
	if columns&columnKeys != 0 {
		keys, err := cutColumn(rest[0], count, "a column of keys")
		if err != nil {
			return nil, err
		}
		for i, key := range keys {
			if len(key) > 0 {
				messages[i].key = key
			}
		}
		rest = rest[1:]
	}
	if columns&columnAttributes != 0 {
		items, err := cutColumn(rest[0], count, "a column of attributes")
		if err != nil {
			return nil, err
		}
		for i, item := range items {
			if len(item) == 0 {
				continue
			}
			if err := decoder.Unmarshal(item, &messages[i].attributes); err != nil {
				return nil, malformed("attributes are a map of text to text: %v", err)
			}
		}
		rest = rest[1:]
	}
	if columns&columnTimes != 0 {
		if len(rest[0]) != 8*count {
			return nil, mismatch("a column of times")
		}
		for i := range messages {
			messages[i].deliverAt = binary.LittleEndian.Uint64(rest[0][8*i:])
		}
	}
	return messages, nil
}
