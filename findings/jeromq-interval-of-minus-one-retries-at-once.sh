#!/bin/sh
# JeroMQ 0.6.0; Java 17 and later, and Maven.
#
# In libzmq a ZMQ_RECONNECT_IVL of -1 means that a socket does not connect again. In JeroMQ `setReconnectIVL(-1)` has
# that effect for a connection that was there. One that was refused is tried again at once, and so without end: some
# thousand times a second, on a thread that is busy meanwhile. With 1000 it is tried about once a second.
#
# Output seen (the first count varies):
#   interval -1: tried again 5065 times in 2 s
#   interval 1000: tried again 3 times in 2 s
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mvn --quiet --batch-mode dependency:copy -Dartifact=org.zeromq:jeromq:0.6.0 -DoutputDirectory="$folder"
mvn --quiet --batch-mode dependency:copy -Dartifact=eu.neilalexander:jnacl:1.0.0 -DoutputDirectory="$folder"
cat > Program.java <<'PROGRAM'
import java.net.ServerSocket;
import java.util.concurrent.atomic.AtomicInteger;
import org.zeromq.SocketType;
import org.zeromq.ZMQ;

class Program {
  public static void main(String[] arguments) throws Exception {
    int port; // where nobody listens
    try (ServerSocket server = new ServerSocket(0)) {
      port = server.getLocalPort();
    }
    int[] counts = {tries(port, -1), tries(port, 1000)};
    System.exit(counts[0] > 100 && counts[1] <= 5 ? 0 : 1);
  }

  static int tries(int port, int interval) throws Exception {
    AtomicInteger count = new AtomicInteger();
    ZMQ.Socket socket = ZMQ.context(1).socket(SocketType.DEALER);
    socket.setLinger(0);
    socket.setReconnectIVL(interval);
    socket.setEventHook(event -> count.incrementAndGet(), ZMQ.EVENT_CONNECT_RETRIED);
    socket.connect("tcp://127.0.0.1:" + port);
    Thread.sleep(2000);
    socket.close();
    System.out.println("interval " + interval + ": tried again " + count + " times in 2 s");
    return count.get();
  }
}
PROGRAM
java -cp "$folder/jeromq-0.6.0.jar:$folder/jnacl-1.0.0.jar" Program.java
