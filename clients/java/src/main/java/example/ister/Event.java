package example.ister;

import java.util.OptionalLong;

/**
 * What a broker tells a consumer besides messages. PROTOCOL.md, section 9, lists the codes.
 *
 * @param code what happened
 * @param topic where
 * @param count how many messages it is about
 * @param offset from which on, if it says so
 * @param text a sentence for people
 */
public record Event(String code, String topic, long count, OptionalLong offset, String text) {}
