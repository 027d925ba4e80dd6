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

  /** ISTER-2.2-15 */
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

  /** ISTER-8.1-2 */
  @Test
  void namesMakeTheIdsThatTheVectorsSay() throws IOException {
    for (CBORObject vector : vectors("producer-ids.json")) {
      long id = Wire.producerId(vector.get("topic").AsString(), vector.get("producer").AsString());
      assertEquals(vector.get("id").AsString(), Long.toString(id));
    }
  }

  /** ISTER-5.1-1, ISTER-5.3-1 */
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

  /** ISTER-5.1-2 */
  @Test
  void aMessageAloneNeedsNoLengths() {
    Batch batch = new Batch();
    batch.add(OutgoingMessage.of("alone"));
    assertEquals(1, batch.body(true).length);
    assertEquals(2, batch.body(false).length);
  }

  /** ISTER-5.3-5 */
  @ParameterizedTest
  @CsvSource({"01000000,6162", "03000000,6162", "0300,6162", "ffffffff,6162"})
  void lengthsThatDoNotAddUpAreRefused(String table, String items) {
    byte[][] body = {HEX.parseHex(table), HEX.parseHex(items)};
    assertThrows(IsterException.class, () -> Delivery.of(0, body));
  }

  /** ISTER-2.3-2 */
  @Test
  void attributesThatAreNoneFailTheMessageAlone() {
    byte[] column = HEX.parseHex("02000000" + "a101");
    byte[][] body = {HEX.parseHex("01000000"), {'x'}, column};
    Message message = take(Delivery.of(Wire.ATTRIBUTE_COLUMN, body), 0);
    assertEquals("x", message.text());
    assertEquals("malformed", assertThrows(IsterException.class, message::attributes).code());
  }

  /**
   * The library reads all of these; the protocol allows none. ISTER-2.2-1, ISTER-2.2-3,
   * ISTER-2.2-4, ISTER-2.2-5, ISTER-2.2-6, ISTER-2.2-7
   */
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

  /** ISTER-2.2-8 */
  @Test
  void integersMayHaveAnyWidth() {
    Header header = Header.decode(HEX.parseHex("a11b0000000000000000190029"));
    assertEquals(Wire.PONG, header.type());
  }

  /** Above 2^63-1 the library has another type. ISTER-2.2-16 */
  @Test
  void numbersOf64BitsAreReadAndWrittenAsTheyAre() {
    Header header = Header.decode(HEX.parseHex("a2001829151bffffffffffffffff"));
    assertEquals(-1, header.uint(Wire.BOOT));
    byte[] written = new Header(Wire.PONG).with(Wire.BOOT, -1L).encode();
    assertEquals("a2001829151bffffffffffffffff", HEX.formatHex(written));
  }

  /** ISTER-2.2-9 */
  @Test
  void whatHasNoValueIsLeftOut() {
    byte[] written = new Header(Wire.BYE).with(Wire.REASON, (Object) null).encode();
    assertEquals("a10002", HEX.formatHex(written));
  }

  /** ISTER-2.2-7 */
  @Test
  void loneSurrogatesAreRefusedBeforeTheyAreSent() {
    assertThrows(
        IsterException.class, () -> OutgoingMessage.builder("x").attribute("a", "\ud800").build());
    assertThrows(
        IsterException.class, () -> new Header(Wire.BYE).with(Wire.TOPIC, "\udc00").encode());
  }

  /** ISTER-2.2-2 */
  @Test
  void aHeaderOverTheLimitIsRefusedBeforeItIsSent() {
    Header header = new Header(Wire.REQUEST).with(Wire.OPERATION, "x".repeat(9000));
    assertEquals("invalid-argument", assertThrows(IsterException.class, header::encode).code());
  }

  /** ISTER-2.2-12 */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "a2001829190400" + "a10182f6f4", // a map with a list
        "a200182919040039ffff", // below 0
        "a2001829190400f93c00", // a float
        "a3001829190400011904014100", // two of them
        "a20018291bffffffffffffffff00" // the largest
      })
  void keysThatAreUnknownAreIgnored(String frame) {
    assertEquals(Wire.PONG, Header.decode(HEX.parseHex(frame)).type());
  }

  /** ISTER-2.2-5, ISTER-2.2-6, ISTER-2.2-7: also of what is not known. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "a30018291904000119040001", // twice
        "a2001829190400c101", // a tag
        "a2001829190400a2010101" + "01", // a key twice inside
        "a200182919040061ff", // no UTF-8
        "a20018291904009f01ff" // an indefinite list
      })
  void whatIsUnknownIsHeldToTheRulesAsWell(String frame) {
    assertThrows(IsterException.class, () -> Header.decode(HEX.parseHex(frame)));
  }

  /** ISTER-2.2-13 */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "a2001829014101", // bytes for a number
        "a200182901f93c00", // a float for a number
        "a20018290120", // below 0
        "a200182903" + "4161", // bytes for text
        "a20018291822" + "01", // a number for a flag
        "a20018291618" + "22f5", // a flag for a version
        "a2001829144f" + "000000000000000000000000000000", // a session of 15 bytes
        "a200182909" + "8101", // half a pair
        "a200182917" + "80" // a list for a map
      })
  void aValueOfAnotherKindIsRefused(String frame) {
    assertThrows(IsterException.class, () -> Header.decode(HEX.parseHex(frame)));
  }

  /** The codec of headers writes what the library would, in the fewest bytes. */
  @Test
  void headersAreWrittenAsTheLibraryWouldWriteThem() {
    long[] numbers = {0, 23, 24, 255, 256, 65_535, 65_536, 0xffff_ffffL, 1L << 32, Long.MAX_VALUE};
    Header header =
        new Header(Wire.RECEIPT)
            .with(Wire.RECEIPTS, numbers)
            .with(Wire.TEXT, "größe \ud83d\ude00")
            .with(Wire.RESUMED, true)
            .with(Wire.CLOSED, false)
            .with(Wire.SESSION, new byte[16])
            .with(Wire.ARGUMENTS, Map.of("a", List.of(1L, "b")));
    CBORObject read = CBORObject.DecodeFromBytes(header.encode());
    CBORObject same = CBORObject.NewOrderedMap();
    same.set(CBORObject.FromObject(0), CBORObject.FromObject(Wire.RECEIPT));
    for (int key = 1; key < Wire.KEYS; key++) {
      if (header.value(key) != null) {
        same.set(CBORObject.FromObject(key), CBORObject.FromObject(header.value(key)));
      }
    }
    assertEquals(same, read);
    assertArrayEquals(header.encode(), read.EncodeToBytes());
  }

  /** Text of any length is written in one piece. ISTER-2.2-4 */
  @Test
  void longTextIsWrittenWhole() {
    byte[] written = new Header(Wire.BYE).with(Wire.TEXT, "x".repeat(5000)).encode();
    assertEquals(5000, Header.decode(written).text(Wire.TEXT).length());
  }
}
