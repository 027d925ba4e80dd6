package ister

// Codec is what drivers and tests may see of the codec; programs have no use for it.
var Codec codecForTests

type codecForTests struct{}

// Header decodes the header of a message from a broker.
func (codecForTests) Header(frame []byte) (map[uint64]any, error) {
	h, err := decodeHeader(frame)
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Cut takes the body of a DELIVER apart.
func (codecForTests) Cut(columns uint64, body [][]byte) ([]Outgoing, error) {
	if len(body) == 0 {
		return nil, malformed("no body")
	}
	if len(body[0])%4 != 0 {
		return nil, mismatch("a batch")
	}
	contents, err := cutBatch(columns, len(body[0])/4, body)
	if err != nil {
		return nil, err
	}
	found := make([]Outgoing, len(contents))
	for i, each := range contents {
		found[i] = Outgoing{Payload: each.payload, Key: each.key, Attributes: each.attributes, DeliverAt: timeOf(each.deliverAt)}
	}
	return found, nil
}

// Pack makes the body of a batch.
func (codecForTests) Pack(messages []Outgoing) (uint64, [][]byte) {
	contents := make([]content, len(messages))
	for i := range messages {
		contents[i] = messages[i].content()
	}
	return packBatch(contents)
}
