"""Clipping in two halves equals torch's."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hilum.parts.gradients import gradient_norm, scale_gradients


def test_norm_then_scale_is_clip_grad_norm() -> None:
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))
    a(torch.randn(9, 5)).square().sum().backward()
    b = copy.deepcopy(a)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        q.grad = p.grad.clone()
    parameters = list(a.parameters())
    norm = gradient_norm(parameters)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])
    torch.testing.assert_close(norm, flat.norm())
    scale_gradients(parameters, 0.3 / (norm + 1e-6))
    nn.utils.clip_grad_norm_(b.parameters(), 0.3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    before = [p.grad.clone() for p in parameters]
    scale_gradients(parameters, torch.tensor(5.0))  # never up
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))
    assert gradient_norm([nn.Parameter(torch.ones(3))]) == 0
