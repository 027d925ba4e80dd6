package example.ister;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.BiConsumer;
import java.util.function.BiFunction;
import java.util.function.Function;

/**
 * The promise of an answer for what was sent with one call. It completes once the messages are as
 * durable as the topic promises, or with an {@link IsterException} that says why they were refused.
 * Stages that hang on it run in a thread of the client that does nothing else: one that blocks
 * delays other receipts. To cancel it changes nothing for the message.
 */
public final class Receipt extends CompletableFuture<Published> {
  private final int index;
  private final int count;
  private volatile boolean observed;

  Receipt(int index, int count) {
    this.index = index;
    this.count = count;
  }

  /** The broker has answered for the batch. */
  void resolve(String topic, long first) {
    boolean unknown = first == Wire.OFFSET_UNKNOWN;
    complete(new Published(topic, unknown ? -1 : first + index, count, unknown));
  }

  void refuse(IsterException reason) {
    observed |= getNumberOfDependents() > 0;
    completeExceptionally(reason);
  }

  /** Whether somebody has been told how it ended. */
  boolean observed() {
    return observed;
  }

  @Override
  public <U> CompletableFuture<U> newIncompleteFuture() {
    return new CompletableFuture<>();
  }

  @Override
  public Published get() throws InterruptedException, ExecutionException {
    Published told = null;
    try {
      told = super.get();
    } finally {
      observed |= isDone();
    }
    return told;
  }

  @Override
  public Published get(long timeout, TimeUnit unit)
      throws InterruptedException, ExecutionException, TimeoutException {
    Published told = null;
    try {
      told = super.get(timeout, unit);
    } finally {
      observed |= isDone();
    }
    return told;
  }

  @Override
  public Published join() {
    observed |= isDone();
    Published told = null;
    try {
      told = super.join();
    } finally {
      observed |= isDone();
    }
    return told;
  }

  @Override
  public CompletableFuture<Published> whenComplete(
      BiConsumer<? super Published, ? super Throwable> action) {
    observed |= isDone();
    return super.whenComplete(action);
  }

  @Override
  public <U> CompletableFuture<U> handle(
      BiFunction<? super Published, Throwable, ? extends U> function) {
    observed |= isDone();
    return super.handle(function);
  }

  @Override
  public CompletableFuture<Published> exceptionally(
      Function<Throwable, ? extends Published> function) {
    observed |= isDone();
    return super.exceptionally(function);
  }
}
