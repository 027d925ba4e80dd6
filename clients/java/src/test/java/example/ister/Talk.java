package example.ister;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** A session without a socket: look at what was said, and answer. */
final class Talk implements Session.Listener {
  static final long SECOND = Duration.ofSeconds(1).toNanos();

  final Session session;
  final List<String> moves = new ArrayList<>();
  long now = 1_000 * SECOND;
  private long refs;

  Talk() {
    session = new Session("test", this);
  }

  /** With a session of another talk. */
  Talk(Session session) {
    this.session = session;
  }

  @Override
  public void welcomed() {}

  @Override
  public void moved(Handle handle, String endpoint) {
    moves.add(endpoint);
  }

  @Override
  public long nextRef() {
    return ++refs;
  }

  @Override
  public void later(Runnable task) {
    task.run();
  }

  List<Header> said() {
    List<Header> found = new ArrayList<>();
    for (byte[][] frames : session.drain(now)) {
      found.add(Header.decode(frames[0]));
    }
    return found;
  }

  List<Header> said(int type) {
    return said().stream().filter(header -> header.type() == type).toList();
  }

  void hear(Header header, byte[]... body) {
    byte[][] frames = new byte[1 + body.length][];
    frames[0] = header.encode();
    System.arraycopy(body, 0, frames, 1, body.length);
    session.receive(frames, now);
  }

  void welcome(boolean resumed) {
    session.connect(now);
    said();
    com.upokecenter.cbor.CBORObject limits = com.upokecenter.cbor.CBORObject.NewMap();
    Map.of(1, 1000, 2, 4000, 3, 2, 4, 300, 7, 1000, 8, 1 << 20).forEach(limits::Add);
    hear(
        new Header(Wire.WELCOME)
            .with(Wire.VERSION, 1L)
            .with(Wire.SESSION, new byte[16])
            .with(Wire.BOOT, -1L)
            .with(Wire.HEARTBEAT, 1000L)
            .with(Wire.RESUMED, resumed)
            .with(Wire.LIMITS, limits));
  }

  Publication producer() {
    Publication made = new Publication(1, "orders", 7, 1000, SECOND / 1000, 0, () -> {});
    session.attach(made, now);
    return made;
  }

  Attachment consumer(String type, long credit) {
    Attachment.Wanted wanted =
        new Attachment.Wanted("orders", "all", type, null, 0, false, Map.of(), false, credit);
    Attachment made = new Attachment(2, wanted, () -> {});
    session.attach(made, now);
    return made;
  }

  /** Answers the last open, and returns what it said. */
  Header opened(Header more) {
    List<Header> all = said();
    for (int i = all.size() - 1; i >= 0; i--) {
      Header open = all.get(i);
      if (open.type() == Wire.OPEN_PRODUCER || open.type() == Wire.OPEN_CONSUMER) {
        hear(more.with(Wire.REF, open.uint(Wire.REF)).with(Wire.HANDLE, open.uint(Wire.HANDLE)));
        return open;
      }
    }
    throw new AssertionError("nothing is being opened");
  }

  Header openedProducer(long sequence, long bytes) {
    return opened(new Header(Wire.OPENED).with(Wire.SEQUENCE, sequence).with(Wire.BYTES, bytes));
  }

  Header openedConsumer() {
    return opened(new Header(Wire.OPENED).with(Wire.OFFSET, 0L));
  }

  void refuse(String code, Action action, long sequence) {
    hear(
        new Header(Wire.ERROR)
            .with(Wire.CODE, code)
            .with(Wire.TEXT, code)
            .with(Wire.ACTION, action.word())
            .with(Wire.HANDLE, 1L)
            .with(Wire.SEQUENCE, sequence));
  }

  Receipt send(Publication publication, String payload) {
    byte[] bytes = payload.getBytes(StandardCharsets.UTF_8);
    assertTrue(publication.hasRoomFor(bytes, null, null, 0), payload);
    return publication.take(bytes, null, null, 0, now);
  }

  List<Long> published() {
    return said(Wire.PUBLISH).stream().map(header -> header.uint(Wire.SEQUENCE)).toList();
  }

  void deliver(long first, String... payloads) {
    deliver(first, false, payloads);
  }

  void deliver(long first, boolean singly, String... payloads) {
    Batch batch = new Batch();
    for (String payload : payloads) {
      batch.add(OutgoingMessage.of(payload));
    }
    Header header =
        new Header(Wire.DELIVER)
            .with(Wire.HANDLE, 2L)
            .with(Wire.OFFSET, first)
            .with(Wire.COUNT, (long) payloads.length)
            .with(Wire.TIMESTAMPS, new long[] {payloads.length, 5});
    if (singly) {
      header.with(Wire.SINGLY, true);
    }
    hear(header, batch.body(false));
  }
}
