package example.ister;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

/**
 * The client's side of a session with one worker: messages in, messages out. It knows no socket, no
 * clock and no thread; whoever uses it holds the client's lock.
 */
final class Session {
  static final long MS = 1_000_000L;
  static final long GREETING = 3_000 * MS;
  static final long BACK_OFF_MIN = 50 * MS;
  static final long BACK_OFF_MAX = 2_000 * MS;
  private static final long REQUEST_BACK_OFF_MAX = 1_000 * MS;

  enum Phase {
    IDLE,
    GREETING,
    READY,
    ENDED
  }

  /** What WELCOME says; section 12. */
  record Limits(
      long messageBytesMax,
      long batchBytesMax,
      long batchesInFlightMax,
      long windowBytes,
      long creditMessagesMax,
      long creditBytesMax) {}

  /** What is done with an answer. */
  interface Answer {
    void take(Header header, byte[][] body, long now);
  }

  /** What a session tells whoever carries it. */
  interface Listener {
    void welcomed();

    void moved(Handle handle, String endpoint);

    /** Runs something later that may call the program. */
    void later(Runnable task);

    /**
     * A REF that this client has not used. A session may be left and resumed by another object, and
     * answers to what was asked before may come then.
     */
    long nextRef();
  }

  /** A question to the broker that any connection may carry. */
  static final class Request {
    final String operation;
    final Map<String, Object> arguments;
    final CompletableFuture<byte[]> answer = new CompletableFuture<>();
    private long due;
    private int tries;
    private boolean over;
    private volatile boolean resent;
    private volatile IsterException trouble;

    Request(String operation, Map<String, Object> arguments) {
      this.operation = operation;
      this.arguments = arguments;
    }

    /** Whether it was asked more than once: the first may have been done. */
    boolean resent() {
      return resent;
    }

    /** Whether it was answered that it could not be done yet: it may have been done after that. */
    boolean retried() {
      return trouble != null;
    }

    /** Why it is being asked again, if it is. */
    IsterException trouble() {
      return trouble;
    }
  }

  /** A handle whose CLOSE is on its way, and what was said before. */
  private record Closing(long handle, List<Header> words) {}

  final Map<Long, Handle> handles = new LinkedHashMap<>();
  private final String text;
  private final Listener listener;
  private Phase phase = Phase.IDLE;
  private byte[] secret;
  private IsterException trouble;
  private Limits limits;
  private long heartbeat;
  private ArrayDeque<byte[][]> outbox = new ArrayDeque<>();

  private final Map<Long, Answer> answers = new HashMap<>();
  private final List<Request> waiting = new ArrayList<>();
  private final Map<Long, Request> asked = new LinkedHashMap<>();

  /**
   * Handles that are over here, and that a resumed session still holds: they are closed there, and
   * what is to be said before.
   */
  private final Map<Long, List<Header>> orphans = new LinkedHashMap<>();

  private final Map<Long, Closing> closes = new HashMap<>(); // by REF
  private long greeted;
  private long spoke;
  private long heard;
  private long pinged;
  private boolean pingOpen;

  Session(String text, Listener listener) {
    this.text = text;
    this.listener = listener;
  }

  Phase phase() {
    return phase;
  }

  Limits limits() {
    return limits;
  }

  IsterException trouble() {
    return trouble;
  }

  byte[] secret() {
    return secret;
  }

  void secret(byte[] known) {
    secret = known;
  }

  void later(Runnable task) {
    listener.later(task);
  }

  void moved(Handle handle, String endpoint) {
    listener.moved(handle, endpoint);
  }

  // ---- what is said

  void emit(Header header, byte[]... body) {
    byte[][] frames = new byte[1 + body.length][];
    frames[0] = header.encode();
    System.arraycopy(body, 0, frames, 1, body.length);
    outbox.add(frames);
  }

  boolean hasSomethingToSay() {
    return !outbox.isEmpty();
  }

  /** Takes everything that is to be sent, which counts as sent then. */
  ArrayDeque<byte[][]> drain(long now) {
    if (outbox.isEmpty()) {
      return new ArrayDeque<>(0); // and never the one that others add to
    }
    spoke = now;
    ArrayDeque<byte[][]> taken = outbox;
    outbox = new ArrayDeque<>();
    return taken;
  }

  /** Returns a REF whose answer is given to a function. */
  long expect(Answer then) {
    long ref = listener.nextRef();
    answers.put(ref, then);
    return ref;
  }

  void attach(Handle handle, long now) {
    handles.put(handle.number(), handle);
    if (phase == Phase.READY) {
      handle.onReady(this, true, now);
    } else if (phase == Phase.ENDED) {
      handle.fail(trouble);
    }
  }

  boolean detach(Handle handle) {
    return handles.remove(handle.number(), handle);
  }

  /**
   * Says CLOSE. Where its answer is lost with the connection, it is said again over the next, and
   * before it the words that are not known to have been heard.
   */
  void close(long handle, List<Header> words, Answer then) {
    long ref =
        expect(
            (header, body, now) -> {
              closes.remove(header.uint(Wire.REF));
              then.take(header, body, now);
            });
    closes.put(ref, new Closing(handle, words));
    emit(new Header(Wire.CLOSE).with(Wire.REF, ref).with(Wire.HANDLE, handle));
  }

  /** A handle is over here. Without a connection its CLOSE waits until the session is resumed. */
  void leave(Handle handle) {
    if (detach(handle) && phase != Phase.READY && phase != Phase.ENDED && secret != null) {
      orphans.putIfAbsent(handle.number(), handle.lastWords());
    }
  }

  /** A handle goes elsewhere while there is no connection: the session here may still hold it. */
  void orphan(Handle handle) {
    if (phase != Phase.READY && phase != Phase.ENDED && secret != null) {
      orphans.putIfAbsent(handle.number(), List.of());
    }
  }

  /** What a session of this endpoint left when it was dropped. */
  void adopt(Map<Long, List<Header>> left) {
    orphans.putAll(left);
  }

  Map<Long, List<Header>> orphans() {
    return new LinkedHashMap<>(orphans);
  }

  // ---- beginning and ending

  /** There is a new socket: says HELLO. */
  void connect(long now) {
    if (phase != Phase.IDLE) {
      return;
    }
    phase = Phase.GREETING;
    outbox.clear();
    pingOpen = false;
    greeted = now;
    spoke = now;
    heard = now;
    Header hello =
        new Header(Wire.HELLO)
            .with(Wire.VERSION, new long[] {Wire.PROTOCOL_VERSION})
            .with(Wire.CLIENT, text);
    if (secret != null) {
      hello.with(Wire.SESSION, secret);
    }
    emit(hello);
  }

  /** The socket is gone, or as good as gone: nothing on the wire counts as sent. */
  void lost(IsterException reason) {
    if (phase != Phase.GREETING && phase != Phase.READY) {
      return;
    }
    phase = Phase.IDLE;
    trouble = reason;
    outbox.clear();
    answers.clear();
    for (Request request : asked.values()) {
      request.resent = true;
      request.due = 0;
      waiting.add(request);
    }
    asked.clear();
    closes.values().forEach(each -> orphans.put(each.handle(), each.words()));
    closes.clear();
    for (Handle handle : List.copyOf(handles.values())) {
      handle.onLost(reason);
    }
  }

  /** Fails everything for good. */
  void end(IsterException reason, boolean bye) {
    if (phase == Phase.READY && bye) {
      emit(new Header(Wire.BYE));
    }
    phase = Phase.ENDED;
    trouble = reason;
    List<Request> all = new ArrayList<>(waiting);
    all.addAll(asked.values());
    waiting.clear();
    asked.clear();
    for (Request request : all) {
      finish(request, null, reason);
    }
    for (Handle handle : List.copyOf(handles.values())) {
      handle.fail(reason);
    }
  }

  // ---- requests

  void ask(Request request, long now) {
    if (phase == Phase.ENDED) {
      finish(request, null, trouble);
      return;
    }
    waiting.add(request);
    sendRequests(now);
  }

  /** Nobody waits for it any more: its answer finds nobody. */
  void withdraw(Request request) {
    request.over = true;
    waiting.remove(request);
    asked.values().remove(request);
  }

  private void finish(Request request, byte[] result, IsterException error) {
    if (request.over) {
      return;
    }
    request.over = true;
    later(
        () -> {
          if (error == null) {
            request.answer.complete(result);
          } else {
            request.answer.completeExceptionally(error);
          }
        });
  }

  private void sendRequests(long now) {
    if (phase != Phase.READY || waiting.isEmpty()) {
      return;
    }
    List<Request> wrong = new ArrayList<>();
    for (Iterator<Request> each = waiting.iterator(); each.hasNext(); ) {
      Request request = each.next();
      if (request.due > now) {
        continue;
      }
      each.remove();
      long ref = expect(this::onResult);
      Header header =
          new Header(Wire.REQUEST).with(Wire.REF, ref).with(Wire.OPERATION, request.operation);
      if (!request.arguments.isEmpty()) {
        header.with(Wire.ARGUMENTS, request.arguments);
      }
      try {
        emit(header);
        asked.put(ref, request);
      } catch (IsterException unsayable) {
        answers.remove(ref);
        request.trouble = unsayable;
        wrong.add(request);
      }
    }
    wrong.forEach(request -> finish(request, null, request.trouble));
  }

  private void onResult(Header header, byte[][] body, long now) {
    Request request = asked.remove(header.uint(Wire.REF));
    if (request == null) {
      return;
    }
    if (header.type() == Wire.ERROR) {
      IsterException error = header.error();
      if (error.action() == Action.RETRY) {
        request.trouble = error; // told if the time runs out
        request.due = now + backOff(request.tries++, BACK_OFF_MIN, REQUEST_BACK_OFF_MAX);
        waiting.add(request);
      } else {
        finish(request, null, error);
      }
    } else if (header.type() == Wire.RESULT && body.length == 1) {
      finish(request, body[0], null);
    } else {
      asked.put(header.uint(Wire.REF), request); // asked again over the next connection
      throw IsterException.malformed(
          "a frame of type %d answered a request".formatted(header.type()));
    }
  }

  // ---- what is heard

  /** Takes in one message. What breaks the protocol costs the connection. */
  void receive(byte[][] frames, long now) {
    if (phase != Phase.GREETING && phase != Phase.READY) {
      return;
    }
    heard = now;
    pingOpen = false;
    try {
      if (frames.length == 0) {
        throw IsterException.malformed("a message without a header");
      }
      byte[][] body = new byte[frames.length - 1][];
      System.arraycopy(frames, 1, body, 0, body.length);
      dispatch(Header.decode(frames[0]), body, now);
    } catch (IsterException broken) {
      lost(broken);
    } catch (
        RuntimeException unforeseen) { // whatever bytes come, they cost no more than the connection
      lost(IsterException.malformed("a frame could not be read: " + unforeseen));
    }
  }

  private void dispatch(Header header, byte[][] body, long now) {
    int type = header.type();
    if (type < Wire.WELCOME) {
      throw IsterException.malformed("a broker does not send frames of type " + type);
    } else if (type == Wire.WELCOME) {
      welcome(header, now);
    } else if (phase == Phase.GREETING) {
      if (type == Wire.ERROR) {
        refused(header.error()); // an answer to HELLO; anything else is for an earlier socket
      }
    } else {
      route(header, body, now);
    }
  }

  private void refused(IsterException error) {
    if (error.action() != Action.RETRY) {
      end(error, false);
      return;
    }
    if (error.code().equals("session-expired")) {
      secret = null;
    }
    throw error;
  }

  private void route(Header header, byte[][] body, long now) {
    boolean error = header.type() == Wire.ERROR;
    if (error) {
      String code = header.text(Wire.CODE);
      if (code.equals("session-expired")) {
        secret = null;
        throw header.error();
      } else if (code.equals("hello-required")) {
        throw header.error();
      }
    }
    if (header.has(Wire.REF)) {
      Answer then = answers.remove(header.uint(Wire.REF));
      if (then != null) {
        then.take(header, body, now);
        return;
      } else if (!error) {
        return;
      }
    }
    if (header.has(Wire.HANDLE)) {
      Handle handle = handles.get(header.uint(Wire.HANDLE));
      if (handle != null) {
        handle.onFrame(header, body, now);
      }
    } else if (error && !header.has(Wire.REF)) {
      throw header.error(); // about the whole connection: everything is asked anew over the next
    }
  }

  private void welcome(Header header, long now) {
    if (phase != Phase.GREETING) {
      throw IsterException.malformed("a welcome that nobody asked for");
    } else if (header.uint(Wire.VERSION) != Wire.PROTOCOL_VERSION) {
      throw IsterException.malformed("the broker welcomes in a version that was not offered");
    }
    limits =
        new Limits(
            header.limit(1, 1 << 20),
            header.limit(2, 1 << 20),
            header.limit(3, 1),
            header.limit(4, 1 << 20),
            header.limit(7, 1 << 16),
            header.limit(8, 1 << 30));
    phase = Phase.READY;
    trouble = null;
    secret = header.bytes(Wire.SESSION);
    long said = header.uint(Wire.HEARTBEAT);
    heartbeat = Math.max(1, said < 0 || said > 86_400_000L ? 86_400_000L : said) * MS;
    listener.welcomed();
    sendRequests(now);
    boolean resumed = header.flag(Wire.RESUMED);
    Map<Long, List<Header>> left = resumed ? orphans() : new LinkedHashMap<>();
    orphans.clear();
    handles.forEach(
        (number, handle) -> {
          if (!handle.isOver()) {
            left.remove(number); // it came back, and is opened again
          }
        });
    left.forEach(
        (orphan, words) -> {
          words.forEach(this::emit);
          close(orphan, words, (answer, body, when) -> {});
        });
    for (Handle handle : List.copyOf(handles.values())) {
      handle.onReady(this, resumed, now);
    }
  }

  // ---- time

  /** Does what is due. */
  void tick(long now) {
    if (phase == Phase.GREETING && now - greeted >= GREETING) {
      lost(
          new IsterException.ConnectionLost(
              "no welcome within %d s".formatted(GREETING / (1_000 * MS))));
    } else if (phase == Phase.READY) {
      if (pingOpen) {
        if (now - pinged >= 2 * heartbeat) {
          lost(
              new IsterException.ConnectionLost(
                  "the broker has been silent for %d ms".formatted((now - heard) / MS)));
          return;
        }
      } else if (now - Math.min(spoke, heard) >= heartbeat) {
        emit(new Header(Wire.PING));
        pinged = now;
        spoke = now;
        pingOpen = true;
      }
      sendRequests(now);
      for (Handle handle : List.copyOf(handles.values())) {
        handle.tick(now);
      }
    }
  }

  /** When {@link #tick} is wanted next. */
  long deadline() {
    if (phase == Phase.GREETING) {
      return greeted + GREETING;
    } else if (phase != Phase.READY) {
      return Handle.NEVER;
    }
    long due = pingOpen ? pinged + 2 * heartbeat : Math.min(spoke, heard) + heartbeat;
    for (Request request : waiting) {
      due = Math.min(due, request.due);
    }
    for (Handle handle : handles.values()) {
      due = Math.min(due, handle.deadline());
    }
    return due;
  }

  /** Doubles from least up to most. */
  static long backOff(int failures, long least, long most) {
    long wait = least;
    for (int i = 0; i < failures && wait < most; i++) {
      wait *= 2;
    }
    return Math.min(wait, most);
  }
}
