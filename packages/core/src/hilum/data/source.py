"""Images and labels of a study as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.core.errors import HilumError, Unsupported, nearest
from hilum.core.types import Intake, LabelSpace, Meta, Request, Sample
from hilum.data.cache import ShardCache, without_tables
from hilum.data.image import CachedImage, installed_intakes, open_image

TASKS: Final = ("multilabel", "multiclass", "binary")
UNCERTAIN: Final = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}


class StudySource:
    """Serves ``rows`` of a study: every view of kind image is (C,H,W) in the stored dtype, reduced to the cache's side.

    Without a ``cache`` files are read and reduced at each request; what is served is equal bit for bit for the same
    ``side``. ``targets["labels"]`` is float32 (F,), NaN unknown, for ``multilabel`` and ``binary``; for ``multiclass``
    an int64 scalar, -1 unknown. Uncertain labels (-1) become what ``uncertain`` says, for all findings or for each
    ({finding: policy}, "ignore" where not named). ``labels`` counts over exactly these rows, under the name ``split``.
    ``meta.extra[view]`` holds ``slope intercept window stats inverted unit`` (modality = stored * slope + intercept).
    """

    def __init__(
        self,
        study: Any,
        *,
        rows: Sequence[int] | NDArray[np.int64],
        views: Mapping[str, Mapping[str, Any]] | None = None,
        cache: ShardCache | None = None,
        label_names: Sequence[str] = (),
        task: str = "multilabel",
        uncertain: str | Mapping[str, str] = "ignore",
        split: str = "train",
        side: int | None = None,
        intakes: Sequence[Intake] | None = None,
    ) -> None:
        self.study, self.cache, self.task = study, cache, task
        self.rows: NDArray[np.int64] = np.asarray(rows, np.int64)
        if not len(self.rows):
            raise HilumError(
                f"there are no images to serve as {split!r}", fix="look at the recipe's `where` and the split"
            )
        self.views = {name: dict(view) for name, view in (views or {"image": {}}).items()}
        for name, view in self.views.items():
            if view.get("kind", "text" if name == "text" else "image") != "image":
                raise Unsupported(
                    f"a study's images cannot serve the view {name!r}", fix="use a source that has this view"
                )
        self.side = side if cache is None else cache.side
        self._intakes = installed_intakes(intakes) if cache is None else {}
        self.sample_ids: list[str] = _texts(study, "sample_id", self.rows)
        self.group_ids: list[str] = _texts(study, "group_id", self.rows)
        self._place = {row: at for at, row in enumerate(self.rows.tolist())}
        self.labels: LabelSpace | None = None
        self._targets: Tensor | None = None
        if label_names:
            self.labels, self._targets = _labels(study, self.rows, tuple(label_names), task, uncertain, split)

    @property
    def index(self) -> Any:
        return self.study.index

    def __len__(self) -> int:
        return len(self.rows)

    def sample_id(self, row: int) -> str:
        return self.sample_ids[self._at(row)]

    def _at(self, row: int) -> int:
        at = self._place.get(row)
        if at is None:
            raise HilumError(f"row {row} is not among the {len(self.rows)} rows of this source")
        return at

    def __getitem__(self, request: Request) -> Sample:
        if request.partners:
            raise Unsupported("a study source serves one row a request", fix="use a plan without partners")
        at = self._at(request.row)
        image = self._image(request.row)
        about = {
            "slope": image.slope,
            "intercept": image.intercept,
            "window": image.window,
            "stats": image.stats,
            "inverted": image.inverted,
            "unit": image.unit,
        }
        meta = Meta(
            self.sample_ids[at],
            self.group_ids[at],
            key=request.key,
            geometry={name: image.geometry() for name in self.views},
            extra={name: dict(about) for name in self.views},
        )
        targets = {} if self._targets is None else {"labels": self._targets[at].clone()}
        return Sample(dict.fromkeys(self.views, image.stored), targets, meta)

    def _image(self, row: int) -> CachedImage:
        if self.cache is not None:
            return self.cache.get(row)
        return open_image(self.study, row, side=self.side, intakes=self._intakes, voi=window_choice(self.views))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "study": without_tables(self.study)}


def window_choice(views: Mapping[str, Mapping[str, Any]]) -> str | int:
    """``voi`` of the views, which share one reading of a file."""
    chosen = {view.get("voi", "auto") for view in views.values()}
    if len(chosen) > 1:
        raise Unsupported("views of one image with different windows", fix="the same voi in every view")
    return next(iter(chosen), "auto")


def _texts(study: Any, column: str, rows: NDArray[np.int64]) -> list[str]:
    values: list[str] = np.asarray(study.column(column), object)[rows].tolist()
    return values


def _labels(
    study: Any,
    rows: NDArray[np.int64],
    names: tuple[str, ...],
    task: str,
    uncertain: str | Mapping[str, str],
    split: str,
) -> tuple[LabelSpace, Tensor]:
    if task not in TASKS:
        raise HilumError(f"there is no label task {task!r}", fix=nearest(task, TASKS) or f"one of {', '.join(TASKS)}")
    if (task == "binary") != (len(names) == 1) and task != "multilabel":
        raise HilumError(f"the task {task} cannot take {len(names)} labels", fix="binary takes one, multiclass several")
    matrix = label_values(study, rows, names, uncertain)
    positive, negative, unknown = ((hits.sum(0)) for hits in (matrix == 1, matrix == 0, np.isnan(matrix)))
    counts = {n: (int(positive[f]), int(negative[f]), int(unknown[f])) for f, n in enumerate(names)}
    space = LabelSpace(names, task, counts={split: counts})
    if task != "multiclass":
        return space, torch.from_numpy(matrix.astype(np.float32))
    hits = matrix == 1
    several = int((hits.sum(1) > 1).sum())
    if several:
        raise HilumError(f"{several} images have more than one of the classes", fix="use task: multilabel")
    return space, torch.from_numpy(np.where(hits.any(1), hits.argmax(1), -1))


def label_values(
    study: Any, rows: NDArray[np.int64], names: tuple[str, ...], uncertain: str | Mapping[str, str]
) -> NDArray[np.float32]:
    """The label matrix (n, F) with uncertain values as the policy reads them: 1, 0, or NaN for unknown."""
    matrix: NDArray[np.float32] = study.label_matrix(names, rows)
    for f, value in enumerate(_policies(uncertain, names)):
        matrix[matrix[:, f] == -1, f] = value
    return matrix


def _policies(uncertain: str | Mapping[str, str], names: tuple[str, ...]) -> list[float]:
    chosen = dict.fromkeys(names, uncertain) if isinstance(uncertain, str) else dict(uncertain)
    for name, policy in chosen.items():
        if name not in names:
            raise HilumError(
                f"labels.uncertain names {name!r}, which is not a label of the run", fix=nearest(name, names)
            )
        if policy not in UNCERTAIN:
            hint = nearest(str(policy), UNCERTAIN) or f"one of {', '.join(UNCERTAIN)}"
            raise HilumError(f"uncertain labels cannot be {policy!r}", fix=hint)
    return [UNCERTAIN[chosen.get(name, "ignore")] for name in names]
