"""The Directory, in parts: what there is, where it lives, and what clients may do to it.

`actor.py` has the actor, and says which part hears what. Nobody but the broker process needs it: whoever wants to speak
to the Directory has its address from `actors/addresses.py`.
"""

from ister.actors.directory.actor import Directory
from ister.actors.directory.gathering import ANSWER_WITHIN_S

__all__ = ["ANSWER_WITHIN_S", "Directory"]
