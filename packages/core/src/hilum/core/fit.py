"""Runs the loop: devices, strategies, precision, signals."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning

from hilum.core.errors import HilumError
from hilum.core.loop import Loop
from hilum.parts.gather import leave

SIGNAL_EXIT = {signal.SIGTERM: 143, signal.SIGINT: 130}


def fit(
    loop: Loop,
    *,
    devices: int | str = 1,
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    accelerator: str = "auto",
) -> None:
    """Run the loop to its end or to a signal; raises the failure that ended it, after a checkpoint was written.

    ``devices`` is a machine's share, of ``nodes`` machines.
    """
    if loop.position.step >= loop.settings.total_steps and not loop.position.hooks_due:
        loop.stop_reason = "finished"
        for hook in loop.hooks:
            hook.on_fit_end(loop)
        return
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(strategy, devices, nodes),
        precision=precision,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        barebones=False,
    )
    atexit.register(leave)  # of what the strategy opens; Lightning does so for nccl alone
    with _signals(loop):
        trainer.fit(loop)
    for hook in loop.hooks:
        hook.on_fit_end(loop)
    if loop.failure is not None:
        raise loop.failure
    if not loop.stop_reason:
        raise HilumError(
            f"training ended at step {loop.position.step} of {loop.settings.total_steps} without a reason",
            fix="`hilum resume` goes on; if it ends here again, report it with the recipe",
        )


def _strategy(name: str, devices: int | str, nodes: int) -> Any:
    if name == "fsdp2":
        from lightning.pytorch.strategies import ModelParallelStrategy

        # Lightning's "auto" would make every local rank a tensor-parallel one and shard nothing.
        ranks = int(os.environ.get("WORLD_SIZE", nodes * devices if isinstance(devices, int) else 1))
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if name == "ddp":
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(broadcast_buffers=False)
    return "auto" if name == "single" else name


@contextmanager
def _signals(loop: Loop) -> Iterator[None]:
    """SIGTERM and SIGINT end the run after the current step, with a checkpoint; a second one ends it at once."""

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []  # by this process: another rank's signal may have been heard of before its own comes

    def note(number: int, frame: Any) -> None:
        if received:  # whoever asks twice does not want to wait; nothing in between may swallow it
            sys.stderr.write("\nended at once; `hilum resume` goes on from the last checkpoint\n")
            sys.stderr.flush()
            os._exit(SIGNAL_EXIT[signal.Signals(number)])
        received.append(number)
        loop.stop_signal = loop.stop_signal or number

    def install() -> None:
        for number in SIGNAL_EXIT:
            signal.signal(number, note)

    before = {number: signal.getsignal(number) for number in SIGNAL_EXIT}
    loop.install_signals = install
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
