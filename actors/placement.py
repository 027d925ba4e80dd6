"""Placement: which worker a topic or a subscription runs on, by rendezvous hashing; pure.

Every name ranks all workers by a hash of (name, worker) and runs on the first. With one worker more or less, only the
names move whose first worker that is (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
"""

from __future__ import annotations

from hashlib import blake2b


def worker_of(key: str, workers: int) -> int:
    """Return the number, from 0, of the worker out of `workers` that `key` runs on."""
    encoded = key.encode()
    return max(range(workers), key=lambda worker: blake2b(b"%d/" % worker + encoded, digest_size=8).digest())


def topic_key(topic: str) -> str:
    """Return the placement key of a topic."""
    return f"topic/{topic}"


def subscription_key(topic: str, subscription: str) -> str:
    """Return the placement key of a subscription; `:` cannot be in either name."""
    return f"subscription/{topic}:{subscription}"
