package example.ister;

/** Reads a topic, without a subscription and without acknowledgments. */
public final class Reader extends Receiver {
  Reader(IsterClient client, Attachment.Wanted wanted) {
    super(client, wanted);
  }
}
