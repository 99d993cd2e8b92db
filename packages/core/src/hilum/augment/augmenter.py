"""The policies of all image views of a recipe: parameters in the worker, pixels on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hilum.augment import compiled, coordinates, paired, reference, sides
from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.augment.readings import matrix_of
from hilum.core.errors import HilumError, nearest
from hilum.core.types import Batch, Meta, Sample, View, ViewGeometry

Norm = tuple[Sequence[float], Sequence[float]]

BACKENDS: Final = ("auto", "reference", "compiled", "triton")


def resolve_backend(backend: str, *, cpu: bool) -> str:
    """What computes the pixels: ``auto`` is ``compiled`` on the processor where numba is installed, else ``reference``.

    ``triton`` works on a GPU and is taken where it is asked for.
    """
    if backend not in BACKENDS:
        fix = nearest(backend, BACKENDS) or "one of " + " ".join(BACKENDS)
        raise HilumError(f"unknown augmentation back-end {backend!r}", where="engine.backend", fix=fix)
    if backend == "compiled":
        compiled.require()
    if backend == "triton" and cpu:
        told = "the Triton augmentation back-end works on a GPU, and these images do not lie on one"
        raise HilumError(told, where="engine.backend", fix="engine.backend: auto, or engine.augment: device on a GPU")
    return backend if backend != "auto" else "compiled" if cpu and compiled.installed() else "reference"


def pixels_of(backend: str) -> Callable[..., Tensor]:
    """The ``apply`` of a resolved back-end."""
    if backend == "triton":
        from hilum.augment.triton import apply  # imports triton

        return apply
    return compiled.apply if backend == "compiled" else reference.apply


class Augmenter:
    """Draws and applies the ``augment`` section for every view of ``views`` that has a ``size``.

    ``views`` and ``augment`` are a recipe's sections; ``norm`` gives each image view's (mean, std) for values in
    [0, 1]. ``image/1`` reads ``image`` where there is no stored view of its own and draws as view 1; views whose names
    share a number share their draw. Views called ``mask``, ``depth``, ``disparity``, ``flow`` or ``normals`` (or
    ``mask/1``) follow the image of their number (:func:`hilum.augment.paired.follow`). ``targets["boxes"]`` (B, N, 4)
    and ``targets["keypoints"]`` (B, N, 2) follow ``image``; ``keypoint_swaps`` exchanges rows under a left-right flip.
    Under ``hflip_with_sides``, ``side_pairs`` of labels and side words of texts are exchanged in mirrored samples.
    ``backend``: see :func:`resolve_backend`; back-ends agree to 1e-5 of the window's range, masks exactly.
    """

    def __init__(
        self,
        views: Mapping[str, Mapping[str, Any]],
        augment: Mapping[str, Any],
        *,
        norm: Mapping[str, Norm],
        lateral: bool = False,
        keypoint_swaps: Iterable[tuple[int, int]] = (),
        side_pairs: Iterable[tuple[int, int]] = (),
        backend: str = "auto",
    ) -> None:
        resolve_backend(backend, cpu=backend != "triton")
        self.backend = backend
        self.followers = {name: view for name, view in views.items() if _base(name) in paired.FOLLOWERS}
        self.swaps, self.side_pairs = tuple(keypoint_swaps), tuple(side_pairs)
        self.with_sides = bool(augment.get("hflip_with_sides"))
        self._policies: dict[tuple[str, bool], Policy] = {}
        self.norm: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
        for name, view in views.items():
            if name in self.followers or "size" not in view:
                continue
            given = norm.get(name, norm.get(_base(name)))
            if given is None:
                raise HilumError(f"view {name!r} has no mean and std", where="norm", fix=f"known: {sorted(norm)}")
            policy = Policy(
                augment,
                size=view["size"],
                channels=int(view.get("channels", 3)),
                mean=given[0],
                std=given[1],
                train=True,
                lateral=lateral,
            )
            self._policies |= {(name, True): policy, (name, False): policy.eval()}
            self.norm[name] = policy.mean, policy.std
        self.views = tuple(self.norm)
        if orphans := [name for name in self.followers if self._image_of(name) is None]:
            raise HilumError(f"view {orphans[0]!r} has no image to follow", where="views", fix="add the image view")
        self._refuse_apart(views, augment)

    def _refuse_apart(self, views: Mapping[str, Mapping[str, Any]], augment: Mapping[str, Any]) -> None:
        """Views of one sample are drawn apart: what belongs to all of them, or to two, has no one geometry to follow."""
        mirrors = [name for name in ("hflip", "vflip") if augment.get(name)]
        bases = {_base(name) for name in self.followers}
        told = self.side_pairs or any(view.get("kind") == "text" for view in views.values())
        if len(self.views) > 1 and mirrors and self.with_sides and told:
            what, fix = "several image views are mirrored apart, and labels or text name sides", f"{mirrors[0]}: 0"
        elif len(self.views) > 1 and bases & {"flow", "disparity"}:
            what, fix = "flow and disparity belong to two images, and views are drawn apart", "one image view"
        elif mirrors and "disparity" in bases:
            what, fix = "a mirrored disparity is that of the other eye, which has no view here", f"{mirrors[0]}: 0"
        else:
            return
        raise HilumError(what, where="the recipe's augment section", fix=fix)

    def policy(self, view: str = "image", *, train: bool) -> Policy:
        """The policy of one view."""
        return self._policies[view, train]

    def explain(self) -> str:
        """Every view's plan, for training and for evaluation."""
        return "\n\n".join(f"{view}: {self._policies[view, t].explain()}" for view in self.views for t in (True, False))

    def draw(self, sample: Sample, *, train: bool) -> Sample:
        """Sets ``meta.extra["draws"][view]``, JSON-able, for every image view the sample has; returns the sample, another one
        where its sides were exchanged."""
        draws = {}
        for view in self.views:
            source = sample.views.get(view, sample.views.get(_base(view)))
            if source is not None:
                draws[view] = self._draw(view, sample.meta, source.shape[-2:], train).to_json()
        sample.meta.extra["draws"] = draws
        return sides.exchange_sample(sample, self.side_pairs) if train and self.with_sides else sample

    def apply(self, batch: Batch, *, train: bool) -> Batch:
        """Stored views -> dense normalised ones, with ``norm``, ``meta[b].geometry`` and whatever follows the image.

        Draws made by :meth:`draw` are used; missing ones are made here, which gives the same numbers.
        """
        views: dict[str, View] = dict(batch.views)
        drawn: dict[str, list[Draw]] = {}
        for view in self.views:
            images = batch.views.get(view, batch.views.get(_base(view)))
            if images is None:
                raise HilumError(f"the batch has no view {view!r}", fix=f"it has {sorted(batch.views)}")
            rows = list(reference.rows_of(images))
            drawn[view] = [self._stored(view, m, x, train) for m, x in zip(batch.meta, rows, strict=True)]
            back_end = resolve_backend(self.backend, cpu=not rows or rows[0].device.type == "cpu")
            views[view] = pixels_of(back_end)(images, drawn[view], batch.meta, self._policies[view, train], view=view)
        valid = dict(batch.valid)
        for name in sorted(self.followers.keys() & batch.views.keys()):
            image, told = str(self._image_of(name)), self.followers[name]
            views[name], known = paired.follow(name, batch.views[name], drawn[image], batch.meta, told, image=image)
            valid |= {} if known is None else {name: known}
        metas = [
            self._located(meta, {view: draws[b] for view, draws in drawn.items()}) for b, meta in enumerate(batch.meta)
        ]
        done = batch.with_(views=views, valid=valid, meta=metas, norm={**batch.norm, **self.norm})
        return self._targets(done) if "image" in drawn else done

    def _draw(self, view: str, meta: Meta, size: Sequence[int], train: bool) -> Draw:
        stats = reference.view_extra(meta, view).get("stats")
        policy = self._policies[view, train]
        return policy.draw(meta.key, source_size=size, view=_number(view), stats=stats)

    def _stored(self, view: str, meta: Meta, image: Tensor, train: bool) -> Draw:
        stored = meta.extra.get("draws", {}).get(view)
        if stored is None and train and self.with_sides:
            raise HilumError(
                "sides are exchanged where a sample is drawn, and this one was not", fix="Augmenter.draw first"
            )
        return Draw.from_json(stored) if stored else self._draw(view, meta, image.shape[1:], train)

    def _image_of(self, mask: str) -> str | None:
        number = _number(mask)
        return next((view for view in self.views if _number(view) == number and _base(view) == "image"), None)

    @staticmethod
    def _located(meta: Meta, draws: Mapping[str, Draw]) -> Meta:
        geometry = dict(meta.geometry)
        for view, draw in draws.items():
            before = geometry.get(view) or geometry.get(_base(view)) or ViewGeometry(draw.size, draw.source_size)
            geometry[view] = coordinates.moved(before, draw)
        return replace(meta, geometry=geometry)

    def _targets(self, batch: Batch) -> Batch:
        targets, valid = dict(batch.targets), dict(batch.valid)
        for name in ("boxes", "keypoints"):
            if name not in targets:
                continue
            moved, kept = [], []
            for row, meta in zip(targets[name].cpu().double().numpy(), batch.meta, strict=True):
                where = meta.geometry["image"]
                m, k = paired.boxes(row, where) if name == "boxes" else paired.keypoints(row, where, swaps=self.swaps)
                moved.append(m)
                kept.append(k)
            if name == "keypoints" and name in valid and self.swaps:  # who is exchanged takes along what is known of it
                rows = [
                    sides.exchange(row, self.swaps) if sides.mirrored(matrix_of(meta.geometry["image"])) else row
                    for row, meta in zip(valid[name], batch.meta, strict=True)
                ]
                valid[name] = torch.stack(rows)
            targets[name] = torch.from_numpy(np.stack(moved)).to(targets[name])
            inside = torch.from_numpy(np.stack(kept)).to(targets[name].device)
            valid[name] = inside & valid[name].bool() if name in valid else inside
        return batch.with_(targets=targets, valid=valid)


def _base(view: str) -> str:
    return view.partition("/")[0]


def _number(view: str) -> int:
    number = view.partition("/")[2]
    return int(number) if number.isdigit() else 0
