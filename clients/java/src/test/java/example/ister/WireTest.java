package example.ister;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.upokecenter.cbor.CBORObject;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.Collection;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * The codec: what every client decodes the same, and what guards against the CBOR library's habits.
 */
class WireTest {
  private static final HexFormat HEX = HexFormat.of();

  /** A checkout has the vectors, a library alone has not. */
  private static Collection<CBORObject> vectors(String name) throws IOException {
    Path path = Path.of("..", "..", "tests", "vectors", name);
    assumeTrue(Files.exists(path), "no test vectors here");
    return CBORObject.FromJSONBytes(Files.readAllBytes(path)).getValues();
  }

  @Test
  void headersOfABrokerAreReadOrRefusedAsTheVectorsSay() throws IOException {
    for (CBORObject vector : vectors("headers-to-client.json")) {
      byte[] frame = HEX.parseHex(vector.get("frames").get(0).AsString());
      boolean refused = false;
      try {
        refused = Header.decode(frame).type() < Wire.WELCOME;
      } catch (IsterException malformed) {
        refused = true;
      }
      assertEquals(vector.get("error") != null, refused, vector.get("name").AsString());
    }
  }

  @Test
  void headersOfAClientAreReadAndWrittenAsTheVectorsSay() throws IOException {
    for (CBORObject vector : vectors("headers-to-broker.json")) {
      if (vector.get("error") == null) {
        Header header = Header.decode(HEX.parseHex(vector.get("frames").get(0).AsString()));
        Header again = Header.decode(header.encode());
        for (int key = 0; key < Wire.KEYS; key++) {
          assertTrue(
              Objects.deepEquals(header.value(key), again.value(key)),
              vector.get("name").AsString() + " key " + key);
        }
      }
    }
  }

  @Test
  void namesMakeTheIdsThatTheVectorsSay() throws IOException {
    for (CBORObject vector : vectors("producer-ids.json")) {
      long id = Wire.producerId(vector.get("topic").AsString(), vector.get("producer").AsString());
      assertEquals(vector.get("id").AsString(), Long.toString(id));
    }
  }

  @Test
  void aBatchComesApartAsItWasPutTogether() {
    Batch batch = new Batch();
    batch.add(OutgoingMessage.builder("a").key("k").build());
    batch.add(OutgoingMessage.of(""));
    batch.add(
        OutgoingMessage.builder("c")
            .attribute("größe", "ü")
            .deliverAt(Instant.ofEpochMilli(7))
            .build());
    Delivery delivery = Delivery.of(batch.columns(), batch.body(false));
    List<Message> found = List.of(take(delivery, 0), take(delivery, 1), take(delivery, 2));
    assertEquals(List.of("a", "", "c"), found.stream().map(Message::text).toList());
    assertArrayEquals(new byte[] {'k'}, found.get(0).key().orElseThrow());
    assertTrue(found.get(2).key().isEmpty());
    assertEquals(Map.of("größe", "ü"), found.get(2).attributes());
    assertEquals(Map.of(), found.get(1).attributes());
    assertEquals(7, found.get(2).deliverAt().orElseThrow().toEpochMilli());
    assertTrue(found.get(0).deliverAt().isEmpty());
    assertEquals("c", new String(new byte[] {found.get(2).payloadBuffer().get()}));
  }

  private static Message take(Delivery delivery, int index) {
    return delivery.message(index);
  }

  @Test
  void aMessageAloneNeedsNoLengths() {
    Batch batch = new Batch();
    batch.add(OutgoingMessage.of("alone"));
    assertEquals(1, batch.body(true).length);
    assertEquals(2, batch.body(false).length);
  }

  @ParameterizedTest
  @CsvSource({"01000000,6162", "03000000,6162", "0300,6162", "ffffffff,6162"})
  void lengthsThatDoNotAddUpAreRefused(String table, String items) {
    byte[][] body = {HEX.parseHex(table), HEX.parseHex(items)};
    assertThrows(IsterException.class, () -> Delivery.of(0, body));
  }

  @Test
  void attributesThatAreNoneFailTheMessageAlone() {
    byte[] column = HEX.parseHex("02000000" + "a101");
    byte[][] body = {HEX.parseHex("01000000"), {'x'}, column};
    Message message = take(Delivery.of(Wire.ATTRIBUTE_COLUMN, body), 0);
    assertEquals("x", message.text());
    assertEquals("malformed", assertThrows(IsterException.class, message::attributes).code());
  }

  /** The library reads all of these; the protocol allows none. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "bf001829ff", // an indefinite map
        "a200182901" + "9f01ff", // an indefinite list
        "a20018291011" + "7f6161ff", // an indefinite text
        "a200182915c101", // a tag
        "a200182901c249010000000000000000", // a bignum
        "a200182901818181818100", // nested too deep
        "a20018290118", // ends early
        "a1001829a0", // something behind it
        "a2001829001829", // a key twice
        "a200182900", // half a pair
        "a2001829190000" + "1829", // a key twice, once in more bytes
        "a10018" + "1c", // no such frame
        "a2001829101c", // a reserved length
        "a200182910" + "62c328" // no UTF-8
      })
  void whatTheLibraryReadsAndTheProtocolForbidsIsRefused(String frame) {
    assertThrows(IsterException.class, () -> Header.decode(HEX.parseHex(frame)));
  }

  @Test
  void integersMayHaveAnyWidth() {
    Header header = Header.decode(HEX.parseHex("a11b0000000000000000190029"));
    assertEquals(Wire.PONG, header.type());
  }

  /** Above 2^63-1 the library has another type. */
  @Test
  void numbersOf64BitsAreReadAndWrittenAsTheyAre() {
    Header header = Header.decode(HEX.parseHex("a2001829151bffffffffffffffff"));
    assertEquals(-1, header.uint(Wire.BOOT));
    byte[] written = new Header(Wire.PONG).with(Wire.BOOT, -1L).encode();
    assertEquals("a2001829151bffffffffffffffff", HEX.formatHex(written));
  }

  @Test
  void whatHasNoValueIsLeftOut() {
    byte[] written = new Header(Wire.BYE).with(Wire.REASON, (Object) null).encode();
    assertEquals("a10002", HEX.formatHex(written));
  }

  @Test
  void loneSurrogatesAreRefusedBeforeTheyAreSent() {
    assertThrows(
        IsterException.class, () -> OutgoingMessage.builder("x").attribute("a", "\ud800").build());
    assertThrows(
        IsterException.class, () -> new Header(Wire.BYE).with(Wire.TOPIC, "\udc00").encode());
  }

  @Test
  void aHeaderOverTheLimitIsRefusedBeforeItIsSent() {
    Header header = new Header(Wire.REQUEST).with(Wire.OPERATION, "x".repeat(9000));
    assertEquals("invalid-argument", assertThrows(IsterException.class, header::encode).code());
  }

  /** Text of any length is written in one piece. */
  @Test
  void longTextIsWrittenWhole() {
    byte[] written = new Header(Wire.BYE).with(Wire.TEXT, "x".repeat(5000)).encode();
    assertEquals(5000, Header.decode(written).text(Wire.TEXT).length());
  }
}
