package example.ister;

import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.Condition;
import java.util.regex.Pattern;

/**
 * The messages of every topic that a pattern stands for, as one source. A thread of its own follows
 * which topics there are.
 *
 * <p>Invariants: topics take turns, one delivery each, so that none starves another; they share the
 * credit, so that what waits here is bounded, however many they are; an acknowledgment goes to the
 * topic that its message came from, and nowhere once that is deleted.
 */
final class PatternFeed implements Source {
  private static final long BYTES_LEAST = 1024;
  private static final Duration AGAIN = Duration.ofMillis(500);
  private static final Duration PATIENCE = Duration.ofSeconds(20); // a watch is answered in five
  private static final String UNKNOWN_ARGUMENT = "invalid-argument";
  private static final String NO_SUBSCRIPTION = "subscription-deleted";
  private static final Set<String> GONE = Set.of("unknown-topic", "topic-deleted");

  private final IsterClient client;
  private final Attachment.Wanted wanted;
  private final Pattern pattern;
  private final Condition changed;
  private final Following following = new Following();
  private final Map<String, Feed> members = new TreeMap<>();
  private final Map<Attachment, Feed> byAttachment = new HashMap<>();
  private final Map<String, Long> made = new HashMap<>(); // when each member's topic was
  private final Set<Feed> turns = new LinkedHashSet<>(); // those that have something, in order
  private final ArrayDeque<Event> events = new ArrayDeque<>();
  private final ArrayDeque<IsterException> complaints = new ArrayDeque<>();

  /**
   * Topics whose subscription was deleted, perhaps with them: when they were made, and the error.
   */
  private final Map<String, Map.Entry<Long, IsterException>> suspected = new HashMap<>();

  private volatile Feed turn; // whose delivery is being handed out
  private CompletableFuture<byte[]> poke = new CompletableFuture<>();
  private Thread thread;
  private boolean plain; // the broker is too old to say which topics are later
  private boolean first = true;
  private long version;
  private boolean over;

  /** {@code wanted} has the pattern for a topic. */
  PatternFeed(IsterClient client, Attachment.Wanted wanted) {
    this.client = client;
    this.wanted = wanted;
    pattern = Following.pattern(wanted.topic());
    changed = client.newCondition();
  }

  /** Opens what there is, and goes on following. */
  void awaitOpened(Duration most) throws InterruptedException {
    long end = client.now() + IsterClient.nanos(most);
    boolean done = false;
    try {
      while (!look(left(end))) {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "the broker does not say which are later");
      }
      client.until(
          changed,
          left(end),
          () -> "not every topic of %s was opened".formatted(topic()),
          now -> allOpened());
      done = true;
    } catch (IsterException.Timeout over) {
      throw busyOr(over);
    } finally {
      if (!done) {
        abandon();
      }
    }
    thread = new Thread(this::follow, "ister-pattern-" + topic());
    thread.setDaemon(true);
    thread.start();
  }

  private Duration left(long end) {
    return Duration.ofNanos(Math.max(0, end - client.now()));
  }

  private Boolean allOpened() {
    for (Feed each : List.copyOf(members.values())) {
      if (each.attachment.error() != null) {
        lost(each);
      } else if (!each.attachment.opened()) {
        return null;
      }
    }
    if (!complaints.isEmpty()) {
      throw complaints.remove();
    }
    return true;
  }

  private IsterException busyOr(IsterException over) {
    client.lock();
    try {
      for (Feed each : members.values()) {
        IsterException told = each.busyOr(over);
        if (told != over) {
          return about(each.topic(), told);
        }
      }
      return over;
    } finally {
      client.unlock();
    }
  }

  private static IsterException about(String topic, IsterException told) {
    return told instanceof IsterException.Refused
        ? new IsterException.Refused(
            told.code(), told.action(), "topic %s: %s".formatted(topic, told.getMessage()))
        : told.again();
  }

  // ---- which topics there are

  private void follow() {
    while (true) {
      try {
        look(PATIENCE);
      } catch (IsterException.Closed ended) {
        return;
      } catch (IsterException.Timeout again) {
        IsterClient.LOG.log(System.Logger.Level.DEBUG, "asking again for {0}", topic());
      } catch (IsterException failed) {
        complain(failed);
      } catch (InterruptedException ended) {
        return;
      }
      client.lock();
      try {
        if (over) {
          return;
        }
      } finally {
        client.unlock();
      }
    }
  }

  private void complain(IsterException failed) {
    client.lock();
    try {
      version = 0; // from the beginning
      complaints.add(failed);
      changed.signalAll();
    } finally {
      client.unlock();
    }
    try {
      TimeUnit.NANOSECONDS.sleep(AGAIN.toNanos());
    } catch (InterruptedException ended) {
      Thread.currentThread().interrupt();
    }
  }

  /** Asks which topics there are now, or others than before; false where it has to ask again. */
  private boolean look(Duration most) throws InterruptedException {
    Map<String, Object> asked = new HashMap<>(Map.of("pattern", topic()));
    CompletableFuture<byte[]> poked;
    client.lock();
    try {
      poked = poke;
      if (first && !plain) {
        asked.put("subscription", wanted.subscription());
      } else if (version != 0) {
        asked.put("version", version);
      }
    } finally {
      client.unlock();
    }
    Session.Request request = client.ask("topic.watch", asked);
    try {
      request.answer.thenAccept(poked::complete);
      request.answer.exceptionally(
          failed -> {
            poked.completeExceptionally(failed);
            return null;
          });
      byte[] answer =
          client.await(poked, most, () -> "the topics of %s were not told".formatted(topic()));
      client.lock();
      try {
        poke = new CompletableFuture<>();
        if (answer.length == 0) {
          version = 0; // something went that may be there again: all anew
        } else {
          take(Info.of(answer));
        }
      } finally {
        client.unlock();
      }
      return true;
    } catch (IsterException.Refused refused) {
      client.lock();
      try {
        poke = new CompletableFuture<>();
        if (!refused.code().equals(UNKNOWN_ARGUMENT) || plain) {
          throw refused;
        }
        plain = true;
        return false;
      } finally {
        client.unlock();
      }
    } finally {
      client.withdraw(request);
    }
  }

  private void take(Info told) {
    if (over) {
      return;
    }
    Map<String, Long> listed = new LinkedHashMap<>();
    Set<String> later = new LinkedHashSet<>();
    for (Info each : told.list("topics")) {
      listed.put(each.text("topic"), each.number("created_ms"));
      if (!first || each.flag("later")) {
        later.add(each.text("topic"));
      }
    }
    suspected.forEach(
        (topic, error) -> {
          if (error
              .getKey()
              .equals(listed.get(topic))) { // the topic is there: it alone was deleted
            following.refuse(topic, error.getKey());
            complaints.add(about(topic, error.getValue()));
          }
        });
    suspected.clear();
    Following.Change change = following.changes(listed, made);
    change.gone().forEach(topic -> drop(members.get(topic)));
    int topics = members.size() + change.come().size();
    for (String topic : change.come()) {
      add(topic, listed.get(topic), later.contains(topic), topics);
    }
    if (!change.come().isEmpty() || !change.gone().isEmpty()) {
      members.values().forEach(each -> resize(each, topics));
    }
    first = false;
    version = told.number("version");
    changed.signalAll();
  }

  private void add(String topic, long created, boolean later, int topics) {
    long credit = wanted.credit() == 0 ? 0 : Following.share(wanted.credit(), topics, 1);
    Object place = later ? Start.earliest().value() : null;
    Feed member = new Feed(client, wanted.of(topic, place, credit), changed, this::lineUp);
    member.attachment.events(events);
    members.put(topic, member);
    byAttachment.put(member.attachment, member);
    made.put(topic, created);
  }

  private void resize(Feed each, int topics) {
    long all = wanted.credit() == 0 ? Handing.CREDIT_MOST : wanted.credit();
    each.attachment.handing.resize(
        Following.share(all, topics, 1),
        Following.share(Handing.CREDIT_BYTES, topics, BYTES_LEAST));
    each.wakeIfToSay();
  }

  private void lineUp(Feed member) {
    boolean made = member.attachment != null; // it is told of its session while it is being made
    if (made && member.attachment.hasNews()) {
      turns.add(member);
    }
  }

  private void drop(Feed member) {
    members.remove(member.topic());
    made.remove(member.topic());
    byAttachment.remove(member.attachment);
    turns.remove(member);
    if (turn == member) {
      turn = null;
    }
    member.abandon();
    turns.remove(member);
    member.wake();
  }

  /** The broker closed a topic's consumer: an error, unless the topic is gone. */
  private void lost(Feed member) {
    if (members.get(member.topic()) != member) {
      return;
    }
    IsterException error = member.attachment.error();
    long created = made.get(member.topic());
    drop(member);
    if (error.code().equals(NO_SUBSCRIPTION)) {
      suspected.put(member.topic(), Map.entry(created, error));
    } else if (!GONE.contains(error.code())) {
      following.refuse(member.topic(), created);
      complaints.add(about(member.topic(), error));
      return;
    }
    poke.complete(new byte[0]);
  }

  // ---- receiving

  @Override
  public Handful current() {
    Feed member = turn;
    return member == null ? Handful.NONE : member.current();
  }

  @Override
  public Message one(long now) {
    tell();
    Feed member = turn;
    if (member != null) {
      Message more = member.current().take();
      if (more != null) {
        return more;
      }
    }
    member = next(now);
    while (member != null) {
      Message found = member.attachment.handing.one();
      settle(member);
      if (found != null) {
        return found;
      }
      member = next(now);
    }
    return null;
  }

  @Override
  public List<Message> some(int most, long now) {
    tell();
    Feed member = next(now);
    while (member != null) {
      List<Message> found = member.attachment.handing.some(most);
      settle(member);
      if (!found.isEmpty()) {
        return found;
      }
      member = next(now);
    }
    return List.of();
  }

  /** The topic to take from: the one in turn until its delivery is over, then the next. */
  private Feed next(long now) {
    Feed member = turn;
    if (member != null) {
      Handing handing = member.attachment.handing;
      handing.sharing(turns.size() + (turns.contains(member) ? 0 : 1));
      handing.asked(now);
      if (handing.hasInHand() && !handing.asks()) {
        return member;
      }
      member.wakeIfToSay();
    }
    Iterator<Feed> each = turns.iterator();
    if (!each.hasNext()) {
      return null;
    }
    member = each.next();
    each.remove();
    if (member.attachment.phase() == Attachment.Phase.CLOSED) {
      lost(member);
      return next(now);
    }
    tellOf(member);
    member.attachment.handing.sharing(turns.size() + 1);
    member.attachment.handing.asked(now);
    turn = member;
    return member;
  }

  private void tellOf(Feed member) {
    IsterException told = member.attachment.takeComplaint();
    told = told == null ? member.attachment.takeDamage() : told;
    if (told != null) {
      complaints.add(about(member.topic(), told));
    }
  }

  /** Lets a topic that has more join the queue again. */
  private void settle(Feed member) {
    Attachment attachment = member.attachment;
    if (!attachment.handing.asks() && attachment.hasNews()) {
      turns.add(member);
    }
    member.wakeIfToSay();
  }

  @Override
  public void check() {
    tell();
    if (over) {
      throw new IsterException.Closed("the " + what());
    }
  }

  private void tell() {
    if (!complaints.isEmpty()) {
      throw complaints.remove().again();
    }
  }

  // ---- what it is

  @Override
  public List<Feed> feeds() {
    return List.copyOf(members.values());
  }

  @Override
  public Feed of(Message message) {
    Feed member = byAttachment.get(message.delivery().owner());
    if (member == null) {
      Attachment owner = message.delivery().owner();
      boolean mine =
          owner != null
              && owner.wanted().subscription().equals(wanted.subscription())
              && pattern.matcher(message.topic()).matches();
      if (!mine) {
        throw IsterException.invalid(
            "this message came from another consumer: acknowledge it there");
      }
    }
    return member;
  }

  @Override
  public List<Event> events() {
    List<Event> told = new ArrayList<>(events);
    events.clear();
    return told;
  }

  @Override
  public Condition changed() {
    return changed;
  }

  @Override
  public String what() {
    return "consumer %s of %s".formatted(subscription(), topic());
  }

  @Override
  public String topic() {
    return wanted.topic();
  }

  @Override
  public String subscription() {
    return wanted.subscription();
  }

  // ---- the end

  @Override
  public void close(Duration most) {
    end();
    Feed.closeAll(client, this, most);
  }

  private void end() {
    client.lock();
    try {
      over = true;
      turn = null;
      changed.signalAll();
    } finally {
      client.unlock();
    }
    if (thread != null) {
      thread.interrupt();
    }
  }

  @Override
  public void abandon() {
    end();
    client.lock();
    try {
      List.copyOf(members.values()).forEach(this::drop);
    } finally {
      client.unlock();
    }
  }
}
