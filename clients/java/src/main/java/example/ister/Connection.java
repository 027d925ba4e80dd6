package example.ister;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicBoolean;
import org.zeromq.SocketType;
import org.zeromq.ZEvent;
import org.zeromq.ZMQ;
import org.zeromq.ZMonitor;

/**
 * One worker's socket, its back-off, and the thread that alone uses it. What frames mean is in
 * {@link Session}.
 *
 * <p>Invariants: a socket that has lost its peer is closed, and never left to reconnect: it would
 * lose messages in silence. No thread of the program touches a socket: an interrupt in one of
 * JeroMQ's calls breaks it. The socket is used without the client's lock, and everything else with
 * it.
 */
final class Connection {
  private static final int FAREWELL_LINGER_MS = 500;
  private static final int REHOME_FAILURES = 3;
  private static final int RECEIVED_AT_ONCE = 256;
  private static final long IDLE_SELECT_MS = 60_000;
  private static final int FRAMES_MAX = 15;
  private static final long HANDSHAKE_MIN = 250 * Session.MS;

  /**
   * JeroMQ reads and writes as much at a time as the socket's buffers hold, and without a size for
   * them 8 KiB: then a batch takes several calls of the system, each for what a copy costs.
   */
  private static final int BUFFER_BYTES = 256 << 10;

  /**
   * JeroMQ starts the next try in 0 to 2 of these, also after a connection that was refused; with
   * -1, which should mean never, it tries again at once and without end. So long is never: the
   * socket is closed at the first sign of trouble.
   */
  private static final int NEVER_RECONNECT_MS = 1 << 29;

  private static final int TROUBLE = ZMQ.EVENT_DISCONNECTED | ZMQ.EVENT_CONNECT_RETRIED;

  /** One socket, from its connect to its close. */
  private static final class Line {
    final ZMQ.Socket socket;
    final SelectionKey key;
    volatile String broken;

    Line(ZMQ.Socket socket, SelectionKey key) {
      this.socket = socket;
      this.key = key;
    }
  }

  private final IsterClient client;
  private final List<String> endpoints;
  private final boolean home;
  private final Session session;
  private final Selector selector;
  private final AtomicBoolean awake = new AtomicBoolean();
  private final CountDownLatch ended = new CountDownLatch(1);
  private final Thread thread;
  private int at;
  private Line line; // of the thread alone
  private long due;
  private int failures;
  private boolean up;
  private boolean over;
  private boolean bye;

  Connection(IsterClient client, List<String> endpoints, boolean home) {
    this.client = client;
    this.endpoints = endpoints;
    this.home = home;
    session = new Session(client.text(), new FromSession());
    session.secret(client.secretOf(endpoints.get(0)));
    session.adopt(client.orphansOf(endpoints.get(0)));
    try {
      selector = Selector.open();
    } catch (IOException failed) {
      throw new UncheckedIOException(failed);
    }
    thread = new Thread(this::run, "ister-" + endpoints.get(0));
    thread.setDaemon(true);
  }

  private final class FromSession implements Session.Listener {
    @Override
    public void welcomed() {
      failures = 0;
      client.sessionsChanged();
    }

    @Override
    public void moved(Handle handle, String endpoint) {
      client.move(Connection.this, handle, endpoint);
    }

    @Override
    public long nextRef() {
      return client.nextRef();
    }

    @Override
    public void later(Runnable task) {
      client.later(task);
    }
  }

  void start() {
    thread.start();
  }

  Session session() {
    return session;
  }

  String endpoint() {
    return endpoints.get(at);
  }

  /** Has the thread look what is to be done. */
  void wake() {
    if (awake.compareAndSet(false, true)) {
      selector.wakeup();
    }
  }

  void awaitEnd(Duration timeout) throws InterruptedException {
    ended.await(timeout.toMillis(), java.util.concurrent.TimeUnit.MILLISECONDS);
  }

  // ---- the thread

  private void run() {
    try {
      List<byte[][]> incoming = new ArrayList<>();
      while (turn(incoming)) {
        awake.set(false);
      }
    } catch (Throwable unforeseen) { // a thread that ends in silence would leave everybody waiting
      client.broken(this, unforeseen);
      closeLine(0);
    } finally {
      try {
        selector.close();
      } catch (IOException ignored) {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "a selector could not be closed", ignored);
      }
      ended.countDown();
    }
  }

  /**
   * Does what is due, says what is to be said, and waits for more; false at the end. A method of
   * its own, because a loop that seldom turns is interpreted for a long time.
   */
  private boolean turn(List<byte[][]> incoming) throws IOException {
    ArrayDeque<byte[][]> outgoing;
    long wait;
    boolean done;
    boolean goodbye;
    client.lock();
    try {
      long now = client.now();
      service(incoming, now);
      incoming.clear();
      outgoing = session.drain(now);
      long wanted = session.phase() == Session.Phase.IDLE ? due : session.deadline();
      wait = wanted == Handle.NEVER ? IDLE_SELECT_MS : Math.max(0, wanted - now) / Session.MS + 1;
      done = over;
      goodbye = bye;
    } finally {
      client.unlock();
    }
    send(outgoing);
    if (done) {
      closeLine(goodbye ? FAREWELL_LINGER_MS : 0);
    } else {
      receive(incoming, Math.min(wait, IDLE_SELECT_MS));
    }
    return !done;
  }

  /** Does everything that is due (lock held). */
  private void service(List<byte[][]> incoming, long now) {
    for (byte[][] message : incoming) {
      session.receive(message, now);
    }
    if (session.phase() == Session.Phase.READY && !up) {
      up = true;
      client.tell(new BrokerEvent("connected", endpoint(), ""));
    }
    if (line != null && line.broken != null) {
      session.lost(new IsterException.ConnectionLost(line.broken));
    }
    session.tick(now);
    if (over) {
      return;
    } else if (session.phase() == Session.Phase.ENDED) {
      closeLine(0);
      return;
    }
    if (session.phase() == Session.Phase.IDLE && line != null) {
      hangUp(now);
    }
    if (line == null && now >= due) {
      try {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "connecting to {0}", endpoint());
        line = connect();
        session.connect(now);
      } catch (RuntimeException | IOException failed) {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "cannot connect", failed);
        hangUp(now);
      }
    }
  }

  /**
   * Of twenty connections that JeroMQ makes, about one stands still before the first byte is sent:
   * where it learns in one go that TCP is connected and that it has commands to carry out, it
   * forgets to listen to the new connection. So a handshake is given up soon, and later after each
   * failure, because the broker may be slow as well.
   */
  private int handshakeMs() {
    return (int) (Session.backOff(failures, HANDSHAKE_MIN, Session.GREETING) / Session.MS);
  }

  private Line connect() throws IOException {
    ZMQ.Socket socket = client.context().socket(SocketType.DEALER);
    boolean made = false;
    try {
      socket.setLinger(0);
      socket.setSndHWM(0);
      socket.setRcvHWM(0);
      socket.setReceiveBufferSize(BUFFER_BYTES);
      socket.setSendBufferSize(BUFFER_BYTES);
      socket.setIPv6(true);
      socket.setReconnectIVL(NEVER_RECONNECT_MS);
      socket.setReconnectIVLMax(0);
      socket.setHandshakeIvl(handshakeMs());
      Line[] opened = new Line[1];
      String where = endpoint();
      socket.setEventHook(
          (ZEvent event) -> {
            Line whose = opened[0];
            if (whose != null) {
              whose.broken =
                  event.getEvent() == ZMonitor.Event.CONNECT_RETRIED
                      ? "nobody listens at " + where
                      : "the connection to " + where + " broke";
              wake();
            }
          },
          TROUBLE);
      opened[0] = new Line(socket, socket.getFD().register(selector, SelectionKey.OP_READ));
      if (!socket.connect(where)) {
        throw new IOException("cannot connect to " + where);
      }
      made = true;
      return opened[0];
    } finally {
      if (!made) {
        socket.close();
      }
    }
  }

  private void send(ArrayDeque<byte[][]> outgoing) {
    if (line == null) {
      return;
    }
    for (byte[][] frames : outgoing) {
      int last = frames.length - 1;
      for (int i = 0; i <= last; i++) {
        if (!line.socket.send(frames[i], i < last ? ZMQ.SNDMORE | ZMQ.DONTWAIT : ZMQ.DONTWAIT)) {
          line.broken = "the socket to " + endpoint() + " takes nothing";
          return;
        }
      }
    }
  }

  /** Waits until there is something to do, and takes in what has come. */
  private void receive(List<byte[][]> incoming, long waitMs) throws IOException {
    if (take(incoming) || awake.get() || line != null && line.broken != null) {
      return;
    }
    // the channel is a sign that the socket wants to be asked; what it is about was looked at just
    // now
    selector.select(waitMs);
    selector.selectedKeys().clear();
    take(incoming);
  }

  private boolean take(List<byte[][]> incoming) {
    if (line == null) {
      return false;
    }
    List<byte[]> frames = new ArrayList<>(6);
    while (incoming.size() < RECEIVED_AT_ONCE) {
      byte[] frame = line.socket.recv(ZMQ.DONTWAIT);
      if (frame == null) {
        break;
      }
      frames.add(frame);
      while (line.socket.hasReceiveMore()) {
        frame = line.socket.recv(ZMQ.DONTWAIT);
        if (frame == null) {
          line.broken = "a message from " + endpoint() + " ended early";
          return false;
        } else if (frames.size() < FRAMES_MAX) {
          frames.add(frame);
        }
      }
      incoming.add(frames.toArray(new byte[0][]));
      frames.clear();
    }
    return !incoming.isEmpty();
  }

  /** Closes the socket and chooses when, and where, to try again (lock held). */
  private void hangUp(long now) {
    IsterException trouble = session.trouble();
    if (up) {
      up = false;
      client.tell(new BrokerEvent("lost", endpoint(), trouble == null ? "" : trouble.getMessage()));
    }
    IsterClient.LOG.log(
        System.Logger.Level.DEBUG,
        "hung up on {0}: {1}",
        endpoint(),
        trouble == null ? "no reason" : trouble.getMessage());
    closeLine(0);
    if (session.secret() != null) {
      client.keepSecret(endpoint(), session.secret());
    }
    int rounds = failures / endpoints.size(); // the other endpoints are tried without a long wait
    long wait = Session.backOff(rounds, Session.BACK_OFF_MIN, Session.BACK_OFF_MAX);
    due = now + wait / 2 + ThreadLocalRandom.current().nextLong(wait);
    if (failures > 0 && endpoints.size() > 1) {
      at = (at + 1) % endpoints.size();
      session.secret(client.secretOf(endpoint()));
    }
    failures++;
    if (!home && failures > REHOME_FAILURES) {
      client.rehome(this);
    }
    client.sessionsChanged();
  }

  private void closeLine(int lingerMs) {
    if (line != null) {
      line.key.cancel();
      line.socket.setEventHook(null, 0);
      line.socket.setLinger(lingerMs);
      line.socket.close();
      line = null;
    }
  }

  /** Ends the connection: the thread says what is to be said and closes the socket (lock held). */
  void leave(IsterException reason) {
    if (!over) {
      bye = session.phase() == Session.Phase.READY;
      session.end(reason, true);
      over = true;
      wake();
    }
  }
}
