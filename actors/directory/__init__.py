"""The Directory and its parts: which topics and subscriptions exist, where they run, and what clients may do to them.

`actor.py` has the actor, and lists which part handles which message. Only the broker process imports this package; who
wants to send mail to the Directory takes its address from `actors/addresses.py`.
"""

from ister.actors.directory.actor import Directory
from ister.actors.directory.gathering import ANSWER_WITHIN_S

__all__ = ["ANSWER_WITHIN_S", "Directory"]
