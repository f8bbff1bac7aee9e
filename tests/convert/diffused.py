"""Reference models of diffusers with random weights."""

from __future__ import annotations

import torch


@torch.no_grad()
def strong(model: torch.nn.Module) -> torch.nn.Module:
    """With weights that keep the size of what they read, so that every one of them matters; in evaluation mode."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
