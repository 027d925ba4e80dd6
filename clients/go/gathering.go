package ister

import "encoding/binary"

// gathering is a batch that messages are added to: its frames grow as they will be sent, so that nothing is copied
// twice and nothing is kept for each message.
//
// Invariants
//   - size is what the frames will have, to the byte
//   - a column begins with the first message that has something in it; those before have nothing

const (
	lengthBytes  = 4
	timeBytes    = 8
	buffersKept  = 8
	bufferLeast  = 4 << 10   // smaller ones are not worth keeping
	bufferMost   = 256 << 10 // and larger ones are too much to keep
	receiptsMade = 64        // receipts that are allocated together
)

type column struct{ table, joined []byte }

func (c *column) add(item []byte) {
	c.table = binary.LittleEndian.AppendUint32(c.table, uint32(len(item)))
	c.joined = append(c.joined, item...)
}

// begin has the column say nothing of the messages before.
func (c *column) begin(count int) { c.table = append(c.table, make([]byte, lengthBytes*count)...) }

type gathering struct {
	count            int
	columns          uint64
	size             uint64
	payloads         column
	keys, attributes column
	times            []byte
	spare            []column // of batches that are done with
	tableBefore      int      // as much as the batch before needed, and an eighth more
	joinedBefore     int
}

// newGathering has room for a batch that is made at once.
func newGathering(messages, payloads int) gathering {
	return gathering{payloads: column{make([]byte, 0, lengthBytes*messages), make([]byte, 0, payloads)}}
}

// wouldBe returns the size with one more message, whose attributes are encoded already.
func (g *gathering) wouldBe(message *content) uint64 {
	added, count := uint64(len(message.payload))+lengthBytes, uint64(g.count)
	if len(message.key) > 0 && g.columns&columnKeys == 0 {
		added += lengthBytes * count
	}
	if len(message.encoded) > 0 && g.columns&columnAttributes == 0 {
		added += lengthBytes * count
	}
	if message.deliverAt > 0 && g.columns&columnTimes == 0 {
		added += timeBytes * count
	}
	if len(message.key) > 0 || g.columns&columnKeys != 0 {
		added += lengthBytes + uint64(len(message.key))
	}
	if len(message.encoded) > 0 || g.columns&columnAttributes != 0 {
		added += lengthBytes + uint64(len(message.encoded))
	}
	if message.deliverAt > 0 || g.columns&columnTimes != 0 {
		added += timeBytes
	}
	return g.size + added
}

// add takes a message in; size is what wouldBe said.
func (g *gathering) add(message *content, size uint64) {
	if g.count == 0 && g.payloads.joined == nil {
		g.payloads = g.room()
	}
	g.payloads.add(message.payload)
	if g.columns != 0 || len(message.key) > 0 || len(message.encoded) > 0 || message.deliverAt > 0 {
		g.addColumns(message)
	}
	g.count++
	g.size = size
}

func (g *gathering) addColumns(message *content) {
	if len(message.key) > 0 && g.columns&columnKeys == 0 {
		g.keys.begin(g.count)
		g.columns |= columnKeys
	}
	if len(message.encoded) > 0 && g.columns&columnAttributes == 0 {
		g.attributes.begin(g.count)
		g.columns |= columnAttributes
	}
	if message.deliverAt > 0 && g.columns&columnTimes == 0 {
		g.times = append(g.times, make([]byte, timeBytes*g.count)...)
		g.columns |= columnTimes
	}
	if g.columns&columnKeys != 0 {
		g.keys.add(message.key)
	}
	if g.columns&columnAttributes != 0 {
		g.attributes.add(message.encoded)
	}
	if g.columns&columnTimes != 0 {
		g.times = binary.LittleEndian.AppendUint64(g.times, message.deliverAt)
	}
}

// seal returns the body, and begins anew.
func (g *gathering) seal() (columns uint64, body [][]byte) {
	if g.count == 1 && g.columns == 0 {
		body = [][]byte{g.payloads.joined} // the length goes without saying
	} else {
		body = append(make([][]byte, 0, 5), g.payloads.table, g.payloads.joined)
	}
	if g.columns&columnKeys != 0 {
		body = append(body, append(g.keys.table, g.keys.joined...))
	}
	if g.columns&columnAttributes != 0 {
		body = append(body, append(g.attributes.table, g.attributes.joined...))
	}
	if g.columns&columnTimes != 0 {
		body = append(body, g.times)
	}
	columns = g.columns
	*g = gathering{
		spare: g.spare, tableBefore: len(g.payloads.table) + len(g.payloads.table)/8,
		joinedBefore: len(g.payloads.joined) + len(g.payloads.joined)/8,
	}
	return columns, body
}

func (g *gathering) room() column {
	if n := len(g.spare); n > 0 {
		found := g.spare[n-1]
		g.spare = g.spare[:n-1]
		return found
	}
	return column{make([]byte, 0, max(g.tableBefore, 64)), make([]byte, 0, max(g.joinedBefore, 256))}
}

// giveBack has the frames of a batch used again, once nothing will send them.
func (g *gathering) giveBack(body [][]byte) {
	if len(g.spare) < buffersKept && len(body) > 1 && len(body[1]) >= bufferLeast && cap(body[1]) <= bufferMost {
		g.spare = append(g.spare, column{body[0][:0], body[1][:0]})
	}
}
