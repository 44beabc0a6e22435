"""What may narrow the choice of a request's next token, beside its sampling parameters."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class LogitsProcessor(Protocol):
    """Belongs to one request; only the engine's thread calls it."""

    def mask(self, row: npt.NDArray[np.float32]) -> None:
        """Set what must not come next to minus infinity, in place, in a row of (vocab,) logits."""
        ...

    def accept(self, token_id: int) -> None:
        """Take note of a token that was chosen; every token of the output, in order."""
        ...
