# The driver of the Ruby client; tests/conformance_clients/DRIVER.md says how one works.

require "json"
require_relative "minimal"

CREDIT_MESSAGES, CREDIT_BYTES = 1000, 1 << 20

# A producer or consumer: each has a connection of its own, for the client reads one answer at a time.
class Handle
  attr_reader :there, :answer, :waiting
  attr_accessor :sequence

  def initialize(endpoint, header, timeout_ms)
    connection = Driver.patient(Connection.new(endpoint), timeout_ms)
    @there, @answer = opened(connection, { 1 => 1, 2 => 1, **header })
    @sequence = @answer[5] || 0
    @waiting = [] # messages that arrived and were not asked for yet
  end

  def take(timeout_ms)
    header, (lengths, payloads) = Driver.patient(@there, timeout_ms).receive(DELIVER)
    @there.send({ 0 => CREDIT, 2 => 1, 11 => header[7], 12 => lengths.bytesize + payloads.bytesize })
    at = 0
    lengths.unpack("V*").each.with_index(header[6]) do |length, offset|
      @waiting << { offset: offset, payload: payloads.byteslice(at, length).unpack1("H*"), attempt: header[10] || 1 }
      at += length
    end
  end
end

class Driver
  COMMANDS = %w[hello connect admin producer publish receipt consumer receive ack close].freeze

  def self.patient(connection, timeout_ms)
    connection.socket.setsockopt(ZMQ::RCVTIMEO, [0, timeout_ms.to_i].max)
    connection
  end

  def initialize
    @clients, @handles, @receipts = {}, {}, {}
  end

  def hello(_given)
    { protocol: 1, language: "ruby-minimal", client: "ruby-minimal", capabilities: %w[attempts moved] }
  end

  def connect(given)
    endpoint = given[:endpoints].first
    @clients[given[:client]] = [endpoint, Driver.patient(Connection.new(endpoint), given[:timeout_ms])]
  end

  def admin(given)
    connection = Driver.patient(@clients[given[:client]].last, given[:timeout_ms])
    arguments = { "dispatch" => "reliable", **given[:arguments].transform_keys(&:to_s) }
    connection.send({ 0 => REQUEST, 1 => 1, 30 => given[:operation], 24 => arguments })
    header, = connection.receive(RESULT)
    raise "#{header[16]}: #{header[17]} (#{header[18]})" if header[0] != RESULT
    { result: { topic: arguments["topic"], strategy: arguments["dispatch"], durability: "" } }
  end

  def producer(given)
    header = { 0 => OPEN_PRODUCER, 3 => given[:topic], 25 => rand(1..2**62) }
    handle = @handles[given[:producer]] = Handle.new(@clients[given[:client]].first, header, given[:timeout_ms])
    { next_sequence: handle.sequence }
  end

  def publish(given)
    handle = @handles[given[:producer]]
    header = { 0 => PUBLISH, 2 => 1, 5 => handle.sequence }
    told = Driver.patient(handle.there, given[:timeout_ms]).ask(header, [RECEIPT], [given[:message][:payload]].pack("H*"))
    handle.sequence += 1
    @receipts[given[:receipt]] = told[27][1]
  end

  def receipt(given)
    { offset: @receipts.delete(given[:receipt]), count: 1, duplicate: nil } # `publish` has waited
  end

  def consumer(given)
    header = { 0 => OPEN_CONSUMER, 3 => given[:topic], 4 => given[:subscription], 28 => given[:type],
               26 => given[:start] || "latest", 11 => CREDIT_MESSAGES, 12 => CREDIT_BYTES }
    handle = @handles[given[:consumer]] = Handle.new(@clients[given[:client]].first, header, given[:timeout_ms])
    { position: handle.answer[6] }
  end

  def receive(given)
    handle, most = @handles[given[:consumer]], given[:max] || 1
    till = now + given[:timeout_ms] / 1000.0
    begin
      handle.take((till - now) * 1000) while handle.waiting.size < most
    rescue Silence
      # what has come by now is the answer
    end
    { messages: handle.waiting.shift(most) }
  end

  def ack(given)
    given[:offsets].each { |offset| @handles[given[:consumer]].there.send({ 0 => ACK, 2 => 1, 13 => [offset, offset + 1] }) }
  end

  def close(given)
    if given[:client]
      connection = @clients.delete(given[:client]).last
    else
      connection = @handles.delete(given[:producer] || given[:consumer]).there
      Driver.patient(connection, given[:timeout_ms]).ask({ 0 => CLOSE, 1 => 2, 2 => 1 }, [DONE])
    end
    connection.send({ 0 => BYE })
    connection.socket.close
  end

  def end
    @handles.each_value { |handle| handle.there.send({ 0 => BYE }) }
  end

  def answer(line)
    given = JSON.parse(line, symbolize_names: true).compact
    given[:timeout_ms] ||= 10_000
    raise "unsupported: this driver does not know the command #{given[:do]} (fix)" unless COMMANDS.include?(given[:do])
    told = public_send(given[:do], given)
    { id: given[:id], ok: told.is_a?(Hash) ? told : {} }
  rescue Silence => error
    { id: given[:id], error: { code: "timeout", action: "retry", text: error.message } }
  rescue RuntimeError => error
    code, text, action = error.message.match(/\A([a-z-]+): (.*) \((\w+)\)\z/m)&.captures
    code, text, action = "driver-failed", error.message, "stop" unless code
    { id: given[:id], error: { code: code, action: action, text: text } }
  rescue StandardError => error
    { id: given[:id], error: { code: "driver-failed", action: "stop", text: "#{error.class}: #{error.message}" } }
  end

  private

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end

$stdout.sync = true
driver = Driver.new
$stdin.each_line { |line| puts JSON.generate(driver.answer(line)) }
driver.end
exit!(0) # sockets that the test did not close: their LINGER has begun, and the context would wait for the program
