"""A few updates on one small batch, and the logits on it, for tests of what learns."""

from __future__ import annotations

import torch

IDS = torch.arange(40, 72).reshape(2, 16)


def train(
    model: torch.nn.Module, num_steps: int = 5, learning_rate: float = 1e-2, *, bf16: bool = False
) -> list[float]:
    """The loss of each of a few updates on one batch."""
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], learning_rate)
    losses = []
    for _ in range(num_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: torch.nn.Module, *, bf16: bool = False) -> torch.Tensor:
    """[2, 16, vocabulary], in evaluation mode."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.eval()(input_ids=IDS).logits.float()
