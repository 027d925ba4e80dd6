# The smallest client of Ister, from transport/PROTOCOL.md: ruby minimal.rb tcp://HOST:PORT TOPIC MESSAGE...

require "cbor"
require "ffi-rzmq"

HELLO, BYE, OPEN_PRODUCER, PUBLISH, CLOSE, OPEN_CONSUMER, CREDIT, ACK, REQUEST = 1, 2, 4, 5, 6, 7, 8, 9, 12
WELCOME, OPENED, RECEIPT, DELIVER, ERROR, MOVED, RESULT, DONE = *33..40
CONTEXT, SOCKETS = ZMQ::Context.new, []

class Silence < StandardError; end

class Connection
  attr_reader :socket

  def initialize(endpoint)
    SOCKETS << @socket = CONTEXT.socket(ZMQ::DEALER)
    @socket.setsockopt(ZMQ::LINGER, 1_000) # by default the program would wait forever for a broker that is gone
    @socket.setsockopt(ZMQ::RCVTIMEO, 10_000)
    @socket.connect(endpoint)
    ask({ 0 => HELLO, 22 => [1] }, [WELCOME])
  end

  def send(header, *body)
    @socket.send_strings([header.to_cbor, *body])
  end

  def receive(*wanted)
    loop do
      frames = []
      raise Silence, "no answer in time" if @socket.recv_strings(frames) < 0
      header, *body = frames
      header = CBOR.decode(header)
      return header, body if wanted.include?(header[0]) || (header[0] == ERROR && header[16] == "topic-exists")
      raise "#{header[16]}: #{header[17]} (#{header[18]})" if header[0] == ERROR
    end
  end

  def ask(header, wanted, *body)
    send(header, *body)
    receive(*wanted).first
  end
end

def opened(connection, header)
  answer = connection.ask(header, [OPENED, MOVED])
  answer[0] == MOVED ? opened(Connection.new(answer[19]), header) : [connection, answer]
end

if $PROGRAM_NAME == __FILE__
  endpoint, topic, *messages = ARGV
  client = Connection.new(endpoint)
  client.ask({ 0 => REQUEST, 1 => 1, 30 => "topic.create", 24 => { "topic" => topic, "dispatch" => "reliable" } }, [RESULT])
  there, answer = opened(client, { 0 => OPEN_PRODUCER, 1 => 2, 2 => 1, 3 => topic, 25 => rand(1..2**62) })
  messages.each.with_index(answer[5]) do |message, sequence|
    receipt = there.ask({ 0 => PUBLISH, 2 => 1, 5 => sequence }, [RECEIPT], message)
    puts "published at offset #{receipt[27][1]}"
  end
  subscription = { 3 => topic, 4 => "minimal", 28 => "shared", 26 => "earliest", 11 => 1000, 12 => 1 << 20 }
  there, = opened(client, { 0 => OPEN_CONSUMER, 1 => 3, 2 => 2, **subscription })
  until messages.empty?
    header, (lengths, payloads) = there.receive(DELIVER)
    there.send({ 0 => CREDIT, 2 => 2, 11 => header[7], 12 => lengths.bytesize + payloads.bytesize })
    lengths.unpack("V*").each.with_index(header[6]) do |length, offset|
      puts "received #{offset} #{payloads.slice!(0, length)}"
      messages.shift
    end
    there.send({ 0 => ACK, 2 => 2, 13 => [header[6], header[6] + header[7]] })
  end
  there.ask({ 0 => CLOSE, 1 => 4, 2 => 2 }, [DONE]) # answered once the acknowledgments before it are applied
  there.send({ 0 => BYE })
  SOCKETS.each(&:close)
  CONTEXT.terminate
end
