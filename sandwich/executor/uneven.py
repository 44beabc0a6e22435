"""Whether the cores of a program are uneven: told by how long they waited for each other, and what
follows for its next steps.

A neighbour on a core, another thread on its SMT sibling or a slower kind of core all show as time
that the other cores spend in barriers. Steps are static until they wait too long; then cores claim
their shares, and now and again a static step looks whether it still has to be.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegen.cores.claims import CLAIMED, MODE_LINE, STATIC, waited_ns

# Part of all cores' time in barriers from which on a step is uneven. Even ones stay below 5 %; half
# of one of two cores lost makes it 25 %, and less the more cores there are, down to this.
UNEVEN_PART = 0.1
CLAIMED_STEPS = 64  # between two static ones


class Unevenness:
    """Chooses between static and claimed steps of one program; `claims` is its buffer."""

    def __init__(self, claims: npt.NDArray[np.int32], num_cores: int) -> None:
        self._mode = claims[MODE_LINE].data
        self._waited = waited_ns(claims)
        self._num_cores = num_cores
        self._steps_left = 0

    def before_step(self) -> None:
        """Say how the next step goes; programs that share a buffer take turns."""
        self._mode[0] = CLAIMED if self._steps_left else STATIC

    def after_step(self, seconds: float) -> None:
        """Look at a step that took so long, and choose how the next one goes."""
        if self._steps_left:
            self._steps_left -= 1
        elif sum(self._waited.tolist()) > UNEVEN_PART * self._num_cores * seconds * 1e9:
            self._steps_left = CLAIMED_STEPS
