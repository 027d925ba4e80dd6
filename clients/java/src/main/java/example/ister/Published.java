package example.ister;

/**
 * Where messages are.
 *
 * @param topic where they were sent to
 * @param offset of the first one; -1 for a duplicate so old that the broker has forgotten where it
 *     is
 * @param count how many they are
 * @param duplicate whether they were stored before, as far as the client can tell
 */
public record Published(String topic, long offset, int count, boolean duplicate) {}
