"""The smallest client of Ister, from transport/PROTOCOL.md: python minimal.py tcp://HOST:PORT TOPIC MESSAGE..."""

import random
import struct
import sys

import cbor2
import zmq

HELLO, BYE, OPEN_PRODUCER, PUBLISH, CLOSE, OPEN_CONSUMER, CREDIT, ACK, REQUEST = 1, 2, 4, 5, 6, 7, 8, 9, 12
WELCOME, OPENED, RECEIPT, DELIVER, ERROR, MOVED, RESULT, DONE = range(33, 41)


class Connection:
    def __init__(self, endpoint):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(endpoint)
        self.ask({0: HELLO, 22: [1]}, WELCOME)

    def send(self, header, *body):
        self.socket.send_multipart([cbor2.dumps(header), *body])

    def receive(self, *wanted):
        while True:
            header, *body = self.socket.recv_multipart()
            header = cbor2.loads(header)
            if header[0] in wanted or (header[0] == ERROR and header[16] == "topic-exists"):
                return header, body
            if header[0] == ERROR:
                raise SystemExit(f"{header[16]}: {header[17]} ({header[18]})")

    def ask(self, header, *wanted, body=()):
        self.send(header, *body)
        return self.receive(*wanted)[0]


def opened(connection, header):
    answer = connection.ask(header, OPENED, MOVED)
    return opened(Connection(answer[19]), header) if answer[0] == MOVED else (connection, answer)


if __name__ == "__main__":
    client, topic, messages = Connection(sys.argv[1]), sys.argv[2], sys.argv[3:]
    client.ask({0: REQUEST, 1: 1, 30: "topic.create", 24: {"topic": topic, "dispatch": "reliable"}}, RESULT)
    there, answer = opened(client, {0: OPEN_PRODUCER, 1: 2, 2: 1, 3: topic, 25: random.getrandbits(63) | 1})
    for sequence, message in enumerate(messages, answer[5]):
        receipt = there.ask({0: PUBLISH, 2: 1, 5: sequence}, RECEIPT, body=[message.encode()])
        print("published at offset", receipt[27][1])
    subscription = {3: topic, 4: "minimal", 28: "shared", 26: "earliest", 11: 1000, 12: 1 << 20}
    there, _ = opened(client, {0: OPEN_CONSUMER, 1: 3, 2: 2, **subscription})
    while messages:
        header, (lengths, payloads, *_) = there.receive(DELIVER)
        there.send({0: CREDIT, 2: 2, 11: header[7], 12: len(lengths) + len(payloads)})
        for offset, (length,) in enumerate(struct.iter_unpack("<I", lengths), header[6]):
            print("received", offset, payloads[:length].decode())
            payloads, messages = payloads[length:], messages[1:]
        there.send({0: ACK, 2: 2, 13: [header[6], header[6] + header[7]]})
    there.ask({0: CLOSE, 1: 4, 2: 2}, DONE)  # answered once the acknowledgments before it are applied
    there.send({0: BYE})
