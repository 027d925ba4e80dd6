package example.ister;

import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.LongFunction;
import org.zeromq.ZMQ;

/**
 * A client of the Ister message broker. It opens producers, consumers and readers, and asks the
 * broker about topics and subscriptions.
 *
 * <p>Every method may be called from any thread. Those that wait take a time, or the client's
 * {@linkplain Builder#timeout default}; when it is over they throw {@link IsterException.Timeout},
 * and whatever they waited for goes on as if they had not been called; so it is when the thread is
 * interrupted. A lost connection is made again for as long as the client lives, and everything goes
 * on where it was.
 */
public final class IsterClient implements AutoCloseable {
  /** This client's version. */
  public static final String VERSION = "0.1.0";

  static final String NAME = "ister-java/" + VERSION;
  static final Logger LOG = System.getLogger("example.ister");

  private static final int NAME_CHARACTERS_MAX = 100;
  private static final int MOVES_MAX = 8;
  private static final long MOVES_WITHIN = 1_000 * Session.MS;
  private static final int EVENTS_KEPT = 256;
  private static final Duration TERM_TIMEOUT = Duration.ofSeconds(3);

  /** How often a handle was moved lately. */
  private record Trail(int count, long since) {}

  /** What is looked at again whenever something changed: null is "not yet". */
  interface Look<T> {
    T at(long now);
  }

  private final String text;
  private final Duration timeout;
  private final ZMQ.Context context = ZMQ.context(1);
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition sessions = lock.newCondition();
  private final long origin = System.nanoTime();
  private final ExecutorService completer;
  private volatile Thread completing;
  private final Connection home;
  private final Map<String, Connection> elsewhere = new LinkedHashMap<>();
  private final List<Connection> left = new ArrayList<>();
  private final Map<String, byte[]> secrets = new HashMap<>();
  private final Map<Long, Trail> trails = new HashMap<>();
  private final ArrayDeque<BrokerEvent> events = new ArrayDeque<>();
  private final Set<Producer> producers = new LinkedHashSet<>();
  private final Set<Receiver> receivers = new LinkedHashSet<>();
  private final Inbox inbox = new Inbox(this);
  private final Map<String, Map<Long, List<Header>>> orphans = new HashMap<>();
  private long lastHandle;
  private long lastRef;
  private boolean closing;
  private boolean closed;

  private IsterClient(Builder builder) {
    text = builder.name.isEmpty() ? NAME : builder.name + " " + NAME;
    timeout = builder.timeout;
    completer =
        Executors.newSingleThreadExecutor(
            task -> {
              Thread made = new Thread(task, "ister-receipts");
              made.setDaemon(true);
              completing = made;
              return made;
            });
    home = new Connection(this, List.copyOf(builder.endpoints), true);
    home.start();
  }

  /**
   * Connects to a broker at the first of some endpoints that answers, like {@code
   * tcp://127.0.0.1:5555}; returns when there is a session.
   */
  public static IsterClient connect(String... endpoints) throws InterruptedException {
    return builder().endpoints(endpoints).connect();
  }

  /** Begins a client. */
  public static Builder builder() {
    return new Builder();
  }

  /** What a client may be told. */
  public static final class Builder {
    private final List<String> endpoints = new ArrayList<>();
    private String name = "";
    private Duration timeout = Duration.ofSeconds(10);

    private Builder() {}

    /** Adds endpoints of the broker's workers; one is enough. */
    public Builder endpoints(String... more) {
      endpoints.addAll(Arrays.asList(more));
      return this;
    }

    /** A name for people who look at the broker. */
    public Builder name(String told) {
      name = told.substring(0, Math.min(NAME_CHARACTERS_MAX, told.length()));
      return this;
    }

    /** How long calls wait that are not told otherwise: 10 s by default. */
    public Builder timeout(Duration most) {
      timeout = Objects.requireNonNull(most, "timeout");
      return this;
    }

    /** Connects; throws {@link IsterException.Timeout} where nobody answers in time. */
    public IsterClient connect() throws InterruptedException {
      if (endpoints.isEmpty()) {
        throw IsterException.invalid("an endpoint is needed, like tcp://127.0.0.1:5555");
      }
      for (String endpoint : endpoints) {
        if (!endpoint.startsWith("tcp://")) {
          throw IsterException.invalid("an endpoint is like tcp://127.0.0.1:5555, not " + endpoint);
        }
      }
      IsterClient client = new IsterClient(this);
      try {
        client.awaitSession(timeout);
        return client;
      } catch (InterruptedException | RuntimeException failed) {
        client.abandon();
        throw failed;
      }
    }
  }

  private void awaitSession(Duration most) throws InterruptedException {
    until(
        sessions,
        most,
        () -> {
          IsterException trouble = home.session().trouble();
          return "no broker at "
              + home.endpoint()
              + (trouble == null ? "" : ": " + trouble.getMessage());
        },
        now -> {
          if (home.session().phase() == Session.Phase.ENDED) {
            throw home.session().trouble().again();
          }
          return home.session().phase() == Session.Phase.READY ? Boolean.TRUE : null;
        });
  }

  // ---- for the other classes

  String text() {
    return text;
  }

  Duration timeout() {
    return timeout;
  }

  ZMQ.Context context() {
    return context;
  }

  void lock() {
    lock.lock();
  }

  void lockInterruptibly() throws InterruptedException {
    lock.lockInterruptibly();
  }

  void unlock() {
    lock.unlock();
  }

  Condition newCondition() {
    return lock.newCondition();
  }

  /** Nanoseconds since the client was made. */
  long now() {
    return System.nanoTime() - origin;
  }

  /** Runs what may call the program, in order, in a thread that does nothing else. */
  void later(Runnable task) {
    try {
      completer.execute(task);
    } catch (RejectedExecutionException over) {
      task.run();
    }
  }

  /** Waits until everything that was to run {@link #later} so far has run. */
  void awaitCompleted(Duration most) throws InterruptedException {
    if (Thread.currentThread() != completing) {
      CountDownLatch done = new CountDownLatch(1);
      later(done::countDown);
      done.await(most.toMillis(), TimeUnit.MILLISECONDS);
    }
  }

  /**
   * Waits until a look finds something; looks under the lock whenever the condition is signalled.
   */
  <T> T until(Condition on, Duration most, java.util.function.Supplier<String> what, Look<T> look)
      throws InterruptedException {
    long left = most == null ? Long.MAX_VALUE : nanos(most);
    lock.lockInterruptibly();
    try {
      while (true) {
        T found = look.at(now());
        if (found != null) {
          return found;
        } else if (left <= 0) {
          throw new IsterException.Timeout(what.get(), null);
        }
        left = on.awaitNanos(left);
      }
    } finally {
      lock.unlock();
    }
  }

  static long nanos(Duration time) {
    try {
      return Math.max(0, time.toNanos());
    } catch (ArithmeticException forEver) {
      return Long.MAX_VALUE;
    }
  }

  /** Waits for a future of this client's; throws what it failed with. */
  <T> T await(Future<T> future, Duration most, java.util.function.Supplier<String> what)
      throws InterruptedException {
    try {
      return future.get(nanos(most), TimeUnit.NANOSECONDS);
    } catch (TimeoutException over) {
      throw new IsterException.Timeout(what.get(), over);
    } catch (ExecutionException failed) {
      throw failed.getCause() instanceof IsterException told
          ? told.again()
          : new CompletionException(failed.getCause());
    }
  }

  /** What a future of this client's failed with. */
  static IsterException reasonOf(CompletableFuture<?> failed) {
    try {
      failed.getNow(null);
    } catch (CompletionException told) {
      if (told.getCause() instanceof IsterException reason) {
        return reason;
      }
    } catch (java.util.concurrent.CancellationException given) {
      return null;
    }
    return null;
  }

  // ---- connections (lock held)

  void sessionsChanged() {
    sessions.signalAll();
  }

  byte[] secretOf(String endpoint) {
    return secrets.get(endpoint);
  }

  long nextRef() {
    return ++lastRef;
  }

  /** What a session at an endpoint still holds, and nobody here has there any more. */
  Map<Long, List<Header>> orphansOf(String endpoint) {
    Map<Long, List<Header>> left = orphans.remove(endpoint);
    return left == null ? Map.of() : left;
  }

  void keepSecret(String endpoint, byte[] secret) {
    secrets.put(endpoint, secret);
  }

  void tell(BrokerEvent event) {
    if (events.size() == EVENTS_KEPT) {
      events.remove();
    }
    events.add(event);
    if (event.code().equals("lost") && !closed) {
      LOG.log(
          Level.WARNING,
          "the connection to {0} was lost ({1}), and is made again",
          event.endpoint(),
          event.text());
    }
    sessionsChanged();
  }

  /** Something happened in a connection's thread that must not: nobody may wait for it any more. */
  void broken(Connection connection, Throwable unforeseen) {
    LOG.log(Level.ERROR, "the thread of a connection failed", unforeseen);
    lock.lock();
    try {
      connection
          .session()
          .end(
              new IsterException("connection-lost", Action.STOP, "internal: " + unforeseen), false);
      sessionsChanged();
    } finally {
      lock.unlock();
    }
  }

  private List<Connection> all() {
    List<Connection> found = new ArrayList<>(elsewhere.values());
    found.add(0, home);
    return found;
  }

  Connection connectionOf(Handle handle) {
    if (!elsewhere.isEmpty()) {
      for (Connection each : elsewhere.values()) {
        if (each.session().handles.get(handle.number()) == handle) {
          return each;
        }
      }
    }
    return home;
  }

  void move(Connection from, Handle handle, String endpoint) {
    long now = now();
    Trail before = trails.get(handle.number());
    int count = before == null || now - before.since() >= MOVES_WITHIN ? 1 : before.count() + 1;
    trails.put(handle.number(), new Trail(count, now));
    if (count > MOVES_MAX) {
      handle.onLost(
          new IsterException.ConnectionLost(
              "moved %d times in a row, lastly to %s".formatted(MOVES_MAX, endpoint)));
      CompletableFuture.delayedExecutor(MOVES_WITHIN, TimeUnit.NANOSECONDS)
          .execute(() -> tryAgain(from, handle));
      return;
    }
    Connection target = home;
    if (!endpoint.equals(home.endpoint())) {
      target = elsewhere.get(endpoint);
      if (target == null) {
        target = new Connection(this, List.of(endpoint), false);
        elsewhere.put(endpoint, target);
        target.start();
      }
    }
    put(from, target, handle, new IsterException.ConnectionLost("moved to " + endpoint));
  }

  private void tryAgain(Connection from, Handle handle) {
    lock.lock();
    try {
      Session session = from.session();
      if (session.phase() == Session.Phase.READY
          && session.handles.get(handle.number()) == handle) {
        handle.onReady(session, true, now());
        from.wake();
      }
    } finally {
      lock.unlock();
    }
  }

  private void put(Connection from, Connection target, Handle handle, IsterException why) {
    from.session().detach(handle);
    from.session().orphan(handle);
    handle.onLost(why);
    target.session().handles.put(handle.number(), handle);
    if (target.session().phase() == Session.Phase.READY) {
      handle.onReady(target.session(), false, now());
    }
    target.wake();
    if (from != home && from != target && from.session().handles.isEmpty()) {
      drop(from);
    }
  }

  /** Leaves a connection that nothing lives at any more. */
  private void drop(Connection from) {
    if (from.session().secret() != null) {
      keepSecret(from.endpoint(), from.session().secret());
      orphans.put(from.endpoint(), from.session().orphans());
    }
    elsewhere.remove(from.endpoint());
    left.add(from);
    from.leave(new IsterException.ConnectionLost("nothing lives there any more"));
  }

  /** Asks the first endpoints again: the one that things were moved to does not come back. */
  void rehome(Connection from) {
    for (Handle handle : List.copyOf(from.session().handles.values())) {
      put(
          from,
          home,
          handle,
          new IsterException.ConnectionLost(from.endpoint() + " does not come back"));
    }
    if (elsewhere.containsValue(from)) {
      drop(from);
    }
  }

  <H extends Handle> H attach(LongFunction<H> make) {
    if (closing) {
      throw new IsterException.Closed("the client");
    }
    H handle = make.apply(++lastHandle);
    home.session().attach(handle, now());
    home.wake();
    return handle;
  }

  void detach(Handle handle) {
    Connection at = connectionOf(handle);
    at.session().leave(handle);
    trails.remove(handle.number());
    at.wake();
  }

  boolean isClosed() {
    return closed;
  }

  void forget(Producer producer) {
    producers.remove(producer);
  }

  /** Whether it was known, and not closed. */
  boolean forget(Receiver receiver) {
    return receivers.remove(receiver);
  }

  // ---- asking

  /** Sends a request; the answer is the body of its RESULT. */
  Session.Request ask(String operation, Map<String, Object> arguments) {
    Session.Request request = new Session.Request(operation, arguments);
    lock.lock();
    try {
      if (closed) {
        throw new IsterException.Closed("the client");
      }
      home.session().ask(request, now());
      home.wake();
    } finally {
      lock.unlock();
    }
    return request;
  }

  byte[] await(Session.Request request, Duration most) throws InterruptedException {
    try {
      return await(
          request.answer,
          most,
          () -> {
            IsterException trouble = request.trouble();
            return request.operation
                + " was not answered"
                + (trouble == null ? "" : ": " + trouble.getMessage());
          });
    } finally {
      withdraw(request);
    }
  }

  /** Nobody waits for an answer any more. */
  void withdraw(Session.Request request) {
    if (!request.answer.isDone()) {
      lock.lock();
      try {
        home.session().withdraw(request);
      } finally {
        lock.unlock();
      }
    }
  }

  /** Topics and subscriptions, asked with the client's time-out. */
  public Admin admin() {
    return new Admin(this, timeout);
  }

  /** Topics and subscriptions, asked with a time-out of their own. */
  public Admin admin(Duration most) {
    return new Admin(this, most);
  }

  /**
   * The next messages that a subscription has not acknowledged, at most so many, without taking
   * them; with the client's time-out.
   */
  public List<Message> peek(String topic, String subscription, int most)
      throws InterruptedException {
    return peek(topic, subscription, most, 0, timeout);
  }

  /** The same from an offset on, with a time-out of its own. */
  public List<Message> peek(String topic, String subscription, int most, long from, Duration within)
      throws InterruptedException {
    Info told = admin(within).subscription(topic, subscription);
    if (!told.members().containsKey("pending")) {
      throw IsterException.invalid(
          "subscription %s of %s keeps no messages: there is nothing to peek at"
              .formatted(subscription, topic));
    }
    return Peek.of(told).read(this, topic, from, most, message -> true, within);
  }

  /** What a subscription gave up, asked with the client's time-out. */
  public DeadLetters deadLetters(String topic, String subscription) {
    return deadLetters(topic, subscription, timeout);
  }

  /** What a subscription gave up; each question to the broker has this time. */
  public DeadLetters deadLetters(String topic, String subscription, Duration most) {
    return new DeadLetters(this, topic, subscription, most);
  }

  // ---- producers, consumers, readers

  /** Opens a producer with the defaults. */
  public Producer producer(String topic) throws InterruptedException {
    return producer(topic, ProducerOptions.defaults());
  }

  /** Opens a producer. */
  public Producer producer(String topic, ProducerOptions options) throws InterruptedException {
    Producer made;
    lock.lock();
    try {
      made = new Producer(this, topic, options);
      producers.add(made);
    } finally {
      lock.unlock();
    }
    made.awaitOpened(options.timeout().orElse(timeout));
    return made;
  }

  /**
   * Opens a consumer of a shared subscription, which is created at the end of its topic if it is
   * not there.
   */
  public Consumer consumer(String topic, String subscription) throws InterruptedException {
    return consumer(topic, subscription, ConsumerOptions.defaults());
  }

  /**
   * Opens a consumer; a subscription that does not exist is created.
   *
   * <p>The topic may be a pattern, like {@code orders/*}: {@code *} stands for one part of a name,
   * {@code >} at the end for one or more. The consumer receives from every topic that matches, in
   * turn. Topics that are made later are received from their first message on; those made while the
   * program was away as well, as long as some topic that matches has the subscription. Dead-letter
   * topics are left out, and so is every topic whose name ends in {@code .dlq}.
   */
  public Consumer consumer(String topic, String subscription, ConsumerOptions options)
      throws InterruptedException {
    Attachment.Wanted wanted = options.wanted(topic, subscription);
    Duration most = options.timeout().orElse(timeout);
    if (Following.isPattern(topic)) {
      PatternFeed feed = new PatternFeed(this, wanted);
      feed.awaitOpened(most);
      return add(feed);
    }
    Feed feed;
    Consumer made;
    lock.lock();
    try {
      feed = new Feed(this, wanted);
      made = new Consumer(this, feed);
      receivers.add(made);
    } finally {
      lock.unlock();
    }
    awaitOpened(feed, made, most);
    return made;
  }

  private Consumer add(PatternFeed feed) {
    lock.lock();
    try {
      Consumer made = new Consumer(this, feed);
      receivers.add(made);
      return made;
    } finally {
      lock.unlock();
    }
  }

  private void awaitOpened(Feed feed, Receiver made, Duration most) throws InterruptedException {
    boolean done = false;
    try {
      feed.awaitOpened(most);
      done = true;
    } finally {
      if (!done) {
        made.abandon();
      }
    }
  }

  /** Opens a reader at the earliest message. */
  public Reader reader(String topic) throws InterruptedException {
    return reader(topic, ReaderOptions.defaults());
  }

  /** Opens a reader. */
  public Reader reader(String topic, ReaderOptions options) throws InterruptedException {
    Feed feed;
    Reader made;
    lock.lock();
    try {
      feed = new Feed(this, options.wanted(topic));
      made = new Reader(this, feed);
      receivers.add(made);
    } finally {
      lock.unlock();
    }
    awaitOpened(feed, made, options.timeout().orElse(timeout));
    return made;
  }

  // ---- request and reply

  /**
   * Sends a message and returns the reply that some consumer of the topic gives it with {@link
   * #reply}; waits for the client's time-out. When the session is lost on the way the error is
   * {@code connection-lost}: the request may have been carried out.
   */
  public Message request(String topic, OutgoingMessage message) throws InterruptedException {
    return request(topic, message, timeout);
  }

  /** The same with a time-out of its own. */
  public Message request(String topic, OutgoingMessage message, Duration most)
      throws InterruptedException {
    return inbox.request(topic, message, most);
  }

  /**
   * Answers a message that came from {@link #request}. Whoever asked may be gone: then nobody hears
   * it.
   */
  public void reply(Message to, OutgoingMessage message) throws InterruptedException {
    inbox.reply(to, message, timeout);
  }

  // ---- the rest

  /** What became of the connections since the last call, oldest first; at most the last 256. */
  public List<BrokerEvent> events() {
    lock.lock();
    try {
      List<BrokerEvent> told = List.copyOf(events);
      events.clear();
      return told;
    } finally {
      lock.unlock();
    }
  }

  /**
   * Cuts every connection without a word, as a broken network would; for tests. They are made again
   * at once.
   */
  public void drop() {
    lock.lock();
    try {
      for (Connection each : all()) {
        each.session().lost(new IsterException.ConnectionLost("the program cut it"));
        each.wake();
      }
    } finally {
      lock.unlock();
    }
  }

  /**
   * Closes what is open, with the client's time-out, and ends the session. Closing again does
   * nothing.
   */
  @Override
  public void close() {
    close(timeout);
  }

  /**
   * Closes what is open: producers wait for their receipts, consumers send their acknowledgments;
   * then says goodbye. What could not be done in time, or was refused, is thrown when everything is
   * closed.
   */
  public void close(Duration most) {
    List<AutoCloseable> open = new ArrayList<>();
    lock.lock();
    try {
      if (closing) {
        return;
      }
      closing = true;
      producers.forEach(Producer::sealAll);
      open.addAll(producers);
      open.addAll(receivers);
    } finally {
      lock.unlock();
    }
    long end = System.nanoTime() + nanos(most);
    IsterException first = null;
    inbox.close(Duration.ofSeconds(1));
    for (AutoCloseable each : open) {
      Duration left = Duration.ofNanos(Math.max(0, end - System.nanoTime()));
      try {
        if (each instanceof Producer producer) {
          producer.close(left);
        } else {
          ((Receiver) each).close(left);
        }
      } catch (IsterException failed) {
        first = first == null ? failed : first;
      }
    }
    abandon();
    if (first != null) {
      throw first;
    }
  }

  /** Ends the session and the threads; what is open fails. */
  private void abandon() {
    List<Connection> all = new ArrayList<>();
    lock.lock();
    try {
      closing = true;
      closed = true;
      all.addAll(all());
      all.addAll(left);
      for (Connection each : all()) {
        each.leave(new IsterException.Closed("the client"));
      }
      sessionsChanged();
    } finally {
      lock.unlock();
    }
    boolean interrupted = Thread.interrupted();
    try {
      for (Connection each : all) {
        each.awaitEnd(TERM_TIMEOUT);
      }
      // JeroMQ waits here until what was said last is on its way, and once it was interrupted for
      // ever
      Thread term = new Thread(context::term, "ister-term");
      term.setDaemon(true);
      term.start();
      term.join(TERM_TIMEOUT.toMillis());
    } catch (InterruptedException again) {
      interrupted = true;
    }
    completer.shutdown();
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
