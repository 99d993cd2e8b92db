"""Networks that follow another without gradient: a frozen or moving teacher, and an average of a whole module.

t = m t + (1 - m) s for every parameter.

Sources: Tarvainen and Valpola 2017 (mean teacher); He et al. 2020 (MoCo) equation 2; Grill et al. 2020 (BYOL).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hilum.core.errors import HilumError, nearest
from hilum.core.types import Progress
from hilum.parts.schedules import Schedule, constant

Buffers = Literal["copy", "average"]


class Teacher(nn.Module):
    """Copies of students, held outside ``parameters()`` and ``buffers()`` and therefore outside the optimiser and DDP.

    ``momentum`` None = frozen: never updated and absent from ``state_dict()``; else :meth:`update` moves the copies,
    which are saved and restored under their names. ``buffers``: "copy" takes the student's (batch statistics),
    "average" treats those of floating dtype as parameters. ``train`` lets the copies follow train mode; else they
    stay in eval. The objective calls :meth:`update` in its ``after_step``.
    """

    _copies: nn.ModuleDict
    _students: nn.ModuleDict

    def __init__(
        self,
        pairs: Mapping[str, nn.Module],
        *,
        momentum: Schedule | float | None,
        buffers: Buffers = "copy",
        train: bool = False,
    ) -> None:
        super().__init__()
        self.momentum = constant(momentum) if isinstance(momentum, int | float) else momentum
        self.buffer_rule, self.follows_train = buffers, train
        students = nn.ModuleDict(dict(pairs))
        copies = copy.deepcopy(students).requires_grad_(False)
        # set around nn.Module's registration: a registered child would reach the optimiser and DDP
        object.__setattr__(self, "_students", students)
        object.__setattr__(self, "_copies", copies)
        self._sha256: str | None = None
        self.train(self.training)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._copies:
            raise HilumError(
                f"this teacher has no {name!r}", fix=nearest(name, self._copies) or str(list(self._copies))
            )
        return self._copies[name]

    @property
    def frozen_sha256(self) -> str | None:
        """Of a frozen teacher's copies, which no checkpoint holds; None for a moving one."""
        if self.momentum is None and self._sha256 is None:
            digest = hashlib.sha256()
            for name, tensor in _tensors(self._copies):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    @torch.no_grad()
    def update(self, progress: Progress | None = None) -> None:
        """One step towards the students; nothing where frozen."""
        if self.momentum is not None:
            held, live = (dict(_tensors(module)) for module in (self._copies, self._students))
            parameters = {name for name, _ in self._copies.named_parameters()}
            _blend(held, live, parameters, self.momentum.at(progress or Progress()), self.buffer_rule)

    @torch.no_grad()
    def reset(self) -> None:
        """Become exactly the students, e.g. after weights were loaded into them. A frozen teacher too."""
        live = dict(_tensors(self._students))
        for name, held in _tensors(self._copies):
            held.copy_(live[name])
        self._sha256 = None

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        self._copies.train(mode and self.follows_train)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._copies._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.momentum is not None:
            self._copies.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if self.momentum is None:
            unexpected_keys.extend(prefix + key for key in mine if strict)
            return
        try:
            result = self._copies.load_state_dict(mine, strict=False)
        except RuntimeError as error:
            error_msgs.append(f"teacher: {error}")
            return
        if strict:
            missing_keys.extend(prefix + key for key in result.missing_keys)
            unexpected_keys.extend(prefix + key for key in result.unexpected_keys)


class EMA:
    """The moving average of a whole module, kept beside it: ``with ema.swap(): evaluate``."""

    def __init__(self, module: nn.Module, *, momentum: Schedule | float, buffers: Buffers = "copy") -> None:
        self.module = module
        self.momentum = constant(momentum) if isinstance(momentum, int | float) else momentum
        self.buffer_rule: Buffers = buffers
        self.shadow = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
        self._swapped = False

    @torch.no_grad()
    def update(self, progress: Progress | None = None) -> None:
        """One step towards the module."""
        if self._swapped:
            raise HilumError("the average cannot be updated while it stands in for the module", where="EMA.swap")
        live, parameters = dict(_tensors(self.module)), {name for name, _ in self.module.named_parameters()}
        _blend(self.shadow, live, parameters, self.momentum.at(progress or Progress()), self.buffer_rule)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Inside, the module has the averaged values; afterwards its own, also after an exception."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, live in _tensors(self.module):
            held = self.shadow[name]
            own = live.detach().clone()
            live.copy_(held)
            held.copy_(own)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged values by name."""
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes values of the same names and shapes."""
        if differing := sorted(set(state) ^ set(self.shadow)):
            raise HilumError(f"the stored average has other tensors, e.g. {differing[:3]}", where="EMA")
        for name, held in self.shadow.items():
            held.copy_(state[name])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _blend(
    held: Mapping[str, Tensor], live: Mapping[str, Tensor], parameters: set[str], momentum: float, buffers: Buffers
) -> None:
    if lost := sorted(held.keys() - live.keys()):
        raise HilumError(f"the module no longer has {lost[:3]}", fix="make the teacher after adapters are attached")
    averaged = [n for n in held if n in parameters or (buffers == "average" and held[n].is_floating_point())]
    targets = [held[n] for n in averaged]
    torch._foreach_mul_(targets, momentum)
    torch._foreach_add_(targets, [live[n].detach() for n in averaged], alpha=1.0 - momentum)
    for name in held.keys() - set(averaged):
        held[name].copy_(live[name])
