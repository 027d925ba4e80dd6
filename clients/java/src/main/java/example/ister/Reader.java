package example.ister;

/** Reads a topic, without a subscription and without acknowledgments. */
public final class Reader extends Receiver {
  Reader(IsterClient client, Feed feed) {
    super(client, feed);
  }
}
