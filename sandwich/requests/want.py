"""What is wanted of the logits behind one token row of a step: a value that a batch carries."""

from __future__ import annotations

from typing import NamedTuple

from codegen.spec import ANY_TOKEN, NOT_SCORED


class Want(NamedTuple):
    """The argmax and its logit come always; the rest costs something.

    needs_logits: the whole row, for whoever chooses by it. target: the token whose log probability
    and rank are wanted, ANY_TOKEN for the sum of the distribution alone, NOT_SCORED for nothing of
    it. num_top: how many of the likeliest tokens, if it is scored.
    """

    needs_logits: bool = False
    target: int = NOT_SCORED
    num_top: int = 0

    @property
    def is_scored(self) -> bool:
        return self.target != NOT_SCORED

    @property
    def is_of_given_token(self) -> bool:
        """Whether the row is there for a token of the prompt, not for a choice."""
        return self.target >= 0


ARGMAX = Want()

__all__ = ["ANY_TOKEN", "ARGMAX", "NOT_SCORED", "Want"]
