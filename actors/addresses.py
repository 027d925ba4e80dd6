"""Where actors are: the names of the broker's processes, and the paths of actors in them; pure.

An actor's address is a node, which is a process, and a path in it (`actors/refs.py` has `Address`). Mail to an actor
whose reference is not known goes to one of these addresses. `actors/placement.py` decides which worker runs what.

Invariants
- two actors of one node never share a path, and a topic or subscription that is created again has another path than
  before
- this module imports none of the actors, so an address can be had without the actor's code
"""

from __future__ import annotations

from typing import Final

from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.subscriptions import READER

# ---- processes ---------------------------------------------------------------------------------------------------

BROKER: Final = "broker"  # the Supervisor and the Directory
TIER: Final = "tier"  # uploads and downloads


def node_of(worker: int) -> str:
    """Return the name of a worker's process."""
    return f"worker-{worker}"


# ---- actors of which there is one a process ----------------------------------------------------------------------

PROCESS_PATH: Final = "process"  # in every process
FRONTEND_PATH: Final = "frontend"  # in every worker, and in the tier
DIRECTORY_PATH: Final = "directory"  # in the broker
SUPERVISOR_PATH: Final = "supervisor"
FETCHER_PATH: Final = "fetcher"  # in the tier
RESTORER_PATH: Final = "restorer"


# ---- actors of topics and subscriptions --------------------------------------------------------------------------


def instance_of(topic: TopicMeta, subscription: SubscriptionMeta) -> str:
    """Return what tells a subscription from earlier ones of its name, or of its topic's name.

    A reader's is its topic's incarnation, since its subscription is new each time it opens.
    """
    topic_is = topic.incarnation.hex()
    return topic_is if subscription.type == READER else f"{topic_is}.{subscription.created_ms}"


def actor_path(kind: str, topic: TopicMeta, subscription: SubscriptionMeta | None = None) -> str:
    """Return the path of an actor of a topic or subscription.

    A topic or subscription that is created again has another path, and never receives mail for its predecessor.
    """
    path = f"{kind}/{topic.name}:{topic.incarnation.hex()}"
    return path if subscription is None else f"{path}:{subscription.name}.{subscription.created_ms}"
