package example.ister;

import com.upokecenter.cbor.CBORObject;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import org.zeromq.SocketType;
import org.zeromq.ZMQ;

/** A broker that answers what a client needs, over a real socket, and remembers what it heard. */
final class FakeBroker implements AutoCloseable {
  private static final long HEARTBEAT_MS = 1000;

  final List<Header> heard = new CopyOnWriteArrayList<>();
  final String endpoint;
  private final ZMQ.Context context = ZMQ.context(1);
  private final Thread thread;
  private volatile boolean over;

  FakeBroker() {
    ZMQ.Socket socket = context.socket(SocketType.ROUTER);
    socket.setLinger(0);
    socket.setReceiveTimeOut(20);
    endpoint = "tcp://127.0.0.1:" + socket.bindToRandomPort("tcp://127.0.0.1");
    thread = new Thread(() -> run(socket), "fake-broker");
    thread.setDaemon(true);
    thread.start();
  }

  long count(int type) {
    return heard.stream().filter(header -> header.type() == type).count();
  }

  void await(int type, int times) throws InterruptedException {
    for (int i = 0; i < 2000 && count(type) < times; i++) {
      Thread.sleep(10);
    }
    if (count(type) < times) {
      throw new AssertionError("no frame of type " + type + " in 20 s");
    }
  }

  private void run(ZMQ.Socket socket) {
    while (!over) {
      byte[] peer = socket.recv();
      if (peer == null) {
        continue;
      }
      List<byte[]> frames = new ArrayList<>();
      while (socket.hasReceiveMore()) {
        frames.add(socket.recv());
      }
      Header header = Header.decode(frames.get(0));
      heard.add(header);
      Header answer = answer(header);
      if (answer != null) {
        socket.sendMore(peer);
        boolean body = answer.type() == Wire.RESULT;
        socket.send(answer.encode(), body ? ZMQ.SNDMORE : 0);
        if (body) {
          socket.send(new byte[] {(byte) 0xa0});
        }
      }
    }
    socket.close();
  }

  private static Header answer(Header asked) {
    return switch (asked.type()) {
      case Wire.HELLO -> welcome();
      case Wire.PING -> new Header(Wire.PONG);
      case Wire.REQUEST -> new Header(Wire.RESULT).with(Wire.REF, asked.uint(Wire.REF));
      case Wire.CLOSE -> new Header(Wire.DONE).with(Wire.REF, asked.uint(Wire.REF));
      case Wire.OPEN_PRODUCER, Wire.OPEN_CONSUMER ->
          new Header(Wire.OPENED)
              .with(Wire.REF, asked.uint(Wire.REF))
              .with(Wire.HANDLE, asked.uint(Wire.HANDLE));
      case Wire.PUBLISH ->
          new Header(Wire.RECEIPT)
              .with(Wire.HANDLE, asked.uint(Wire.HANDLE))
              .with(
                  Wire.RECEIPTS, new long[] {asked.uint(Wire.SEQUENCE), asked.uint(Wire.SEQUENCE)});
      default -> null;
    };
  }

  private static Header welcome() {
    return new Header(Wire.WELCOME)
        .with(Wire.VERSION, 1L)
        .with(Wire.SESSION, new byte[16])
        .with(Wire.BOOT, 1L)
        .with(Wire.HEARTBEAT, HEARTBEAT_MS)
        .with(Wire.LIMITS, CBORObject.NewMap().Add(3, 16).Add(6, 64));
  }

  @Override
  public void close() {
    over = true;
    boolean interrupted = Thread.interrupted();
    try {
      thread.join();
    } catch (InterruptedException stopped) {
      interrupted = true;
    }
    context.term();
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
