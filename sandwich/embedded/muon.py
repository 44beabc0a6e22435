"""Muon for the weight matrices: momentum, then the nearest semi-orthogonal matrix as the update.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers" (2024), with the update scaled to
the RMS of AdamW's (Liu et al., "Muon is scalable for LLM training", 2025): one rate serves both.
Matrices of one shape are stacked and go through each multiplication together.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic; Jordan's coefficients
NUM_ITERATIONS = 5
RMS_OF_ADAMW = 0.2


def orthogonalize(stack: torch.Tensor) -> torch.Tensor:
    """Push the singular values of each matrix of (batch, rows, columns) towards one; dtype kept."""
    a, b, c = NEWTON_SCHULZ
    is_tall = stack.shape[-2] > stack.shape[-1]
    x = (stack.mT if is_tall else stack).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if is_tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """For two-dimensional parameters only; the embedding, norms and biases belong to AdamW."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def step(self) -> None:
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                with torch.no_grad():
                    self._update(params, group, RMS_OF_ADAMW * max(shape) ** 0.5)

    def _update(
        self, params: list[torch.nn.Parameter], group: dict[str, Any], scale: float
    ) -> None:
        velocities = torch.stack([self._nesterov(p, group["momentum"]) for p in params])
        for param, update in zip(params, orthogonalize(velocities), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-group["lr"] * scale)

    def _nesterov(self, param: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        assert param.grad is not None
        state = self.state[param]
        if not state:
            state["velocity"] = torch.zeros_like(param)
        velocity: torch.Tensor = state["velocity"]
        velocity.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(velocity, momentum)
