package example.ister;

/**
 * What became of a connection.
 *
 * @param code {@code connected} (also: again), or {@code lost}: it is made again then
 * @param endpoint whose
 * @param text why it was lost
 */
public record BrokerEvent(String code, String endpoint, String text) {}
