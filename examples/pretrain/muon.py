"""The optimiser: Muon for the convolutions, AdamW for what is left.

Muon (Jordan et al., 2024) makes each update's matrix orthogonal, so that every direction in it moves by the same
amount. On short runs from scratch it gets as far as SGD or AdamW in fewer steps.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonal(update: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly: five steps of a Newton-Schulz iteration, in bfloat16."""
    x = update.bfloat16()
    x = x / (x.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if transposed else x).to(update.dtype)


def add_up(tensors: list[Tensor]) -> None:
    """Sums over processes, in place, in one message."""
    if dist.is_initialized():
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


class Muon:
    """Updates a `Student`; with torch.distributed, all copies of it alike."""

    def __init__(self, model: nn.Module, lr: float, momentum: float = 0.9) -> None:
        self.lr, self.momentum = lr, momentum
        named = list(model.named_parameters())
        self.filters = [p for name, p in named if p.ndim == 4 and "trunk" in name]
        self.others = [p for name, p in named if not (p.ndim == 4 and "trunk" in name)]
        self.velocity = [torch.zeros_like(p) for p in self.filters]
        self.adam = torch.optim.AdamW(self.others, lr=lr * 0.05, betas=(0.9, 0.99), weight_decay=0.01)

    @torch.no_grad()
    def step(self, share: float, filters_share: float = 1.0) -> None:
        """One update at a share of the peak learning rate, the filters at a share of that; clears the gradients.

        Gradients are summed over processes, not averaged: neither of the two rules looks at their scale.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        add_up([p.grad for p in self.filters + self.others])
        updates = []
        for k, (weight, velocity) in enumerate(zip(self.filters, self.velocity, strict=True)):
            velocity.mul_(self.momentum).add_(weight.grad)
            if k % world == rank:  # the costly part is shared out
                update = (weight.grad + self.momentum * velocity).flatten(1)
                updates.append(orthogonal(update).view(weight.shape))
            else:
                updates.append(torch.zeros_like(weight))
        add_up(updates)
        for weight, update in zip(self.filters, updates, strict=True):
            # Each layer keeps the norm that batch norm makes irrelevant: the rate is then relative, for all layers.
            weight.mul_(weight.shape[0] ** 0.5 / weight.norm()).add_(update, alpha=-self.lr * share * filters_share)
            weight.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.lr * 0.05 * share
        self.adam.step()
        self.adam.zero_grad()

    def state_dict(self) -> dict:
        """Return what `load_state_dict` takes."""
        return {"velocity": self.velocity, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state."""
        for mine, theirs in zip(self.velocity, state["velocity"], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state["adam"])
