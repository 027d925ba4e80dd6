package example.ister;

import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * The dead letters of one subscription: they are looked at, sent back, or deleted. They lie in the
 * subscription's dead-letter topic, which may serve several subscriptions: only this one's are
 * touched.
 *
 * <p>A letter is acknowledged once it is done with, so that an interruption loses none; what
 * becomes a dead letter meanwhile waits for the next call, so that none goes round for ever.
 */
public final class DeadLetters implements Iterable<DeadLetter> {
  private static final String REDRIVE = "redrive"; // the subscription that letters are taken from
  private static final int PAGE = 100;
  private static final int TOGETHER = 500; // letters that are settled at a time
  private static final Duration SILENCE = Duration.ofMillis(300); // then the broker is asked
  private static final Set<String> NOT_THERE = Set.of("unknown-topic", "unknown-subscription");

  /** What is about one letter, and not about the topic that it goes to: the others go on. */
  private static final Set<String> OF_A_LETTER =
      Set.of("message-too-large", "batch-too-large", "invalid-argument");

  private final IsterClient client;
  private final String topic;
  private final String subscription;
  private final Duration timeout;

  DeadLetters(IsterClient client, String topic, String subscription, Duration timeout) {
    this.client = client;
    this.topic = topic;
    this.subscription = subscription;
    this.timeout = timeout;
  }

  /** The topic they are in; of a subscription that was deleted, the usual name. */
  public String topic() throws InterruptedException {
    String named = "";
    try {
      named = client.admin(timeout).subscription(topic, subscription).text("dead_letter_topic");
    } catch (IsterException refused) {
      if (!NOT_THERE.contains(refused.code())) {
        throw refused;
      }
    }
    return named.isEmpty() ? "%s.%s.dlq".formatted(topic, subscription) : named;
  }

  private Peek waiting(String letters) throws InterruptedException {
    try {
      return Peek.of(client.admin(timeout).subscription(letters, REDRIVE));
    } catch (IsterException refused) {
      if (!NOT_THERE.contains(refused.code())) {
        throw refused;
      }
      return new Peek(List.of(), 0, 0);
    }
  }

  /** How many wait, of all subscriptions that share the dead-letter topic. */
  public long count() throws InterruptedException {
    return waiting(topic()).count();
  }

  // ---- looking

  /** The first hundred that wait, oldest first; see {@link #list(int, long)}. */
  public List<DeadLetter> list() throws InterruptedException {
    return list(PAGE);
  }

  /** Those that wait, oldest first, at most so many; see {@link #list(int, long)}. */
  public List<DeadLetter> list(int most) throws InterruptedException {
    return list(most, -1);
  }

  /**
   * Those that wait behind an offset of the dead-letter topic (-1 for all), oldest first, at most
   * so many; nothing is taken. Where there are more than a hundred runs of letters with gaps
   * between them, those behind are told by an error: {@code invalid-argument}.
   */
  public List<DeadLetter> list(int most, long after) throws InterruptedException {
    String letters = topic();
    Peek waiting = waiting(letters);
    List<Message> found = waiting.read(client, letters, after + 1, most, this::isMine, timeout);
    if (found.size() < most && waiting.untold() > 0 && !waiting.ranges().isEmpty()) {
      throw IsterException.invalid(
          "%d letters of %s cannot be listed: they lie behind the first %d runs of letters, which are all that a broker tells; redrive or purge some of these, then list again"
              .formatted(waiting.untold(), letters, waiting.ranges().size()));
    }
    return found.stream().map(DeadLetter::new).toList();
  }

  /** The letter at an offset of the dead-letter topic, also if it was redriven meanwhile. */
  public Optional<DeadLetter> show(long offset) throws InterruptedException {
    String letters = topic();
    Peek one = new Peek(List.of(new long[] {offset, offset + 1}), 1, offset + 1);
    try {
      if (offset >= client.admin(timeout).topic(letters).number("durable_end")) {
        return Optional.empty();
      }
      return one.read(client, letters, offset, 1, this::isMine, timeout).stream()
          .map(DeadLetter::new)
          .findFirst();
    } catch (IsterException refused) {
      if (refused.code().equals("unknown-topic") || refused.code().equals("offset-out-of-range")) {
        return Optional.empty();
      }
      throw refused;
    }
  }

  /**
   * All that wait, oldest first, of which few are in memory at a time; nothing is taken. An
   * interrupt is thrown as {@link IsterException.Interrupted}.
   */
  @Override
  public Iterator<DeadLetter> iterator() {
    return new Iterator<>() {
      private final ArrayDeque<DeadLetter> page = new ArrayDeque<>();
      private long after = -1;

      @Override
      public boolean hasNext() {
        if (page.isEmpty()) {
          try {
            page.addAll(list(PAGE, after));
          } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
            throw new IsterException.Interrupted(stopped);
          }
          after = page.isEmpty() ? after : page.getLast().offset();
        }
        return !page.isEmpty();
      }

      @Override
      public DeadLetter next() {
        if (!hasNext()) {
          throw new NoSuchElementException("no more letters wait");
        }
        return page.remove();
      }
    };
  }

  private boolean isMine(Message letter) {
    Map<String, String> told = letter.attributes(); // one that was published by hand is everybody's
    return told.getOrDefault(DeadLetter.MARK + "topic", topic).equals(topic)
        && told.getOrDefault(DeadLetter.MARK + "subscription", subscription).equals(subscription);
  }

  // ---- settling

  /** Sends all back to the topic they came from; see {@link #redrive(int, String)}. */
  public int redrive() throws InterruptedException {
    return redrive(Integer.MAX_VALUE, topic);
  }

  /** Sends at most so many back, the oldest first; see {@link #redrive(int, String)}. */
  public int redrive(int most) throws InterruptedException {
    return redrive(most, topic);
  }

  /**
   * Sends letters to a topic, at most so many, the oldest first, and returns how many. Payload, key
   * and attributes are as they were sent; those about the failure give way to {@code
   * ister.redriven_from}, {@code ister.redriven_offset} and {@code ister.redriven_for}. At least
   * once: after an interruption some may be sent again, and nothing is lost. A letter that the
   * topic refuses stays, and stops no others; the error in the end is about the first of these.
   * {@code subscription-busy}: somebody else does this at the moment.
   */
  public int redrive(int most, String to) throws InterruptedException {
    return send(most, to, null);
  }

  /** Sends the letters at these offsets of the dead-letter topic to a topic. */
  public int redrive(Collection<Long> offsets, String to) throws InterruptedException {
    return send(offsets.size(), to, Set.copyOf(offsets));
  }

  private int send(int most, String to, Set<Long> offsets) throws InterruptedException {
    String letters = topic();
    if (to.equals(letters)) {
      throw IsterException.invalid(
          to + " is the dead-letter topic: letters would go round for ever");
    }
    try (Producer producer = client.producer(to, ProducerOptions.defaults().timeout(timeout))) {
      if (!producer.reliable()) {
        throw IsterException.invalid(
            "topic %s is non-reliable: it stores nothing, and letters would be lost".formatted(to));
      }
      return settle(letters, most, offsets, producer);
    }
  }

  /** Deletes all; see {@link #purge(int)}. */
  public int purge() throws InterruptedException {
    return purge(Integer.MAX_VALUE);
  }

  /**
   * Deletes letters, at most so many, the oldest first, and returns how many. What becomes a dead
   * letter meanwhile stays.
   */
  public int purge(int most) throws InterruptedException {
    return settle(topic(), most, null, null);
  }

  /** One pass over the letters that there were at its beginning. */
  private final class Pass {
    private final Consumer consumer;
    private final Producer producer;
    private final Set<Long> wanted;
    private final long end;
    private final long most;
    private final Set<Long> gone = new HashSet<>(); // settled, and not known to be acknowledged
    private final Map<Long, IsterException> refused = new LinkedHashMap<>();
    private long unseen;
    private long reached;
    private int done;

    Pass(Consumer consumer, Producer producer, Set<Long> wanted, Peek waiting, long most) {
      this.consumer = consumer;
      this.producer = producer;
      this.wanted = wanted;
      this.most = most;
      end = waiting.end();
      unseen = waiting.count();
    }

    boolean over() {
      return (unseen <= 0 || done >= most) && gone.isEmpty();
    }

    void take(List<Message> batch) throws InterruptedException {
      List<Message> again = new ArrayList<>();
      List<Message> fresh = new ArrayList<>();
      for (Message letter : batch) {
        long offset = letter.offset();
        if (offset >= end) {
          unseen = 0;
          break;
        }
        if (offset >= reached) {
          reached = offset + 1;
          unseen--;
        }
        if (gone.contains(offset)) {
          again.add(letter);
        } else if ((wanted == null || wanted.contains(offset))
            && !refused.containsKey(offset)
            && done + fresh.size() < most
            && isMine(letter)) {
          fresh.add(letter);
        }
      }
      List<Message> settled = producer == null ? fresh : sent(fresh);
      done += settled.size();
      again.addAll(settled);
      acknowledge(again);
    }

    private void acknowledge(List<Message> settled) throws InterruptedException {
      if (settled.isEmpty()) {
        return;
      }
      settled.forEach(letter -> gone.add(letter.offset()));
      try {
        consumer.ack(settled);
        consumer.flush(timeout);
      } catch (IsterException.ConnectionLost forgotten) {
        return; // they come again
      }
      settled.forEach(letter -> gone.remove(letter.offset()));
    }

    /** Sends letters, and returns those that the topic has now. */
    private List<Message> sent(List<Message> letters) throws InterruptedException {
      Map<Message, Receipt> receipts = new LinkedHashMap<>();
      List<Message> stored = new ArrayList<>();
      for (Message letter : letters) {
        try {
          receipts.put(letter, producer.send(again(letter), timeout));
        } catch (IsterException.Refused failed) {
          refuse(letter, failed);
        }
      }
      for (Map.Entry<Message, Receipt> each : receipts.entrySet()) {
        try {
          each.getValue().get(timeout.toMillis(), TimeUnit.MILLISECONDS);
          stored.add(each.getKey());
        } catch (ExecutionException failed) {
          refuse(each.getKey(), IsterClient.reasonOf(each.getValue()));
        } catch (TimeoutException over) {
          throw new IsterException.Timeout("no receipt for a letter", over);
        }
      }
      return stored;
    }

    private void refuse(Message letter, IsterException failed) {
      if (failed == null || !OF_A_LETTER.contains(failed.code())) {
        throw failed == null ? IsterException.malformed("a receipt was cancelled") : failed.again();
      }
      refused.put(letter.offset(), failed);
    }

    private OutgoingMessage again(Message letter) {
      Map<String, String> attributes = DeadLetter.kept(letter.attributes());
      attributes.put(DeadLetter.MARK + "redriven_from", letter.topic());
      attributes.put(DeadLetter.MARK + "redriven_offset", Long.toString(letter.offset()));
      attributes.put(DeadLetter.MARK + "redriven_for", subscription);
      OutgoingMessage.Builder made =
          OutgoingMessage.builder(letter.payload()).attributes(attributes);
      letter.key().ifPresent(made::key);
      return made.build();
    }
  }

  private int settle(String letters, int limit, Set<Long> wanted, Producer producer)
      throws InterruptedException {
    Peek waiting = waiting(letters);
    long most = Math.min(waiting.count(), limit);
    if (most <= 0) {
      return 0;
    }
    ConsumerOptions options =
        ConsumerOptions.defaults()
            .type(SubscriptionType.EXCLUSIVE)
            .start(Start.earliest())
            .creditMessages(2 * TOGETHER)
            .timeout(timeout);
    Pass pass;
    try (Consumer consumer = client.consumer(letters, REDRIVE, options)) {
      pass = new Pass(consumer, producer, wanted, waiting, most);
      while (!pass.over()) {
        List<Message> batch = consumer.receiveBatch(TOGETHER, SILENCE);
        if (!batch.isEmpty()) {
          pass.take(batch);
        } else if (isDrained(letters, waiting.end())) {
          break;
        }
      }
    }
    if (!pass.refused.isEmpty()) {
      Map.Entry<Long, IsterException> first = pass.refused.entrySet().iterator().next();
      throw new IsterException.Refused(
          first.getValue().code(),
          Action.FIX,
          "%d letters were settled, and %d stay in %s: the first, at offset %d, is not taken: %s"
              .formatted(
                  pass.done,
                  pass.refused.size(),
                  letters,
                  first.getKey(),
                  first.getValue().getMessage()));
    }
    return pass.done;
  }

  private boolean isDrained(String letters, long end) throws InterruptedException {
    Info told = client.admin(timeout).subscription(letters, REDRIVE);
    if (told.flag("paused")) {
      throw new IsterException.Refused(
          "paused", Action.RETRY, "subscription %s of %s is paused".formatted(REDRIVE, letters));
    }
    return told.number("waiting_redelivery") == 0 && told.number("position") >= end;
  }
}
