"""Tests of the demonstration's cast."""

from __future__ import annotations

import ister
import ister.testing
from ister.demo.run import CAST, seat_of


def test_a_client_accepts_every_seat_of_the_cast() -> None:
    """Each consumer opens beside those before it: none has an option that its kind of subscription refuses."""
    with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
        for topic, subscription, kind, count in CAST:
            client.create_topic(topic, exist_ok=True)
            for number in range(count):
                seat = seat_of(topic, subscription, kind, number, "")
                client.consumer(
                    seat.topic,
                    subscription=seat.subscription,
                    type=seat.type,
                    start="earliest",
                    priority=seat.priority,
                )
