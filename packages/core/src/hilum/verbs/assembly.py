"""From a checked recipe and a study to everything a run needs, gathered: data, what is resolved, networks, optimisers."""

from hilum.verbs.networks import build_objective, normalisation
from hilum.verbs.optimisation import loop_settings
from hilum.verbs.resolving import resolve, strategy_of
from hilum.verbs.run_data import (
    Data,
    feed_of,
    grouping_sha256,
    image_statistics,
    label_names,
    labels_sha256,
    open_data,
    open_rows,
)

__all__ = [
    "Data",
    "build_objective",
    "feed_of",
    "grouping_sha256",
    "image_statistics",
    "label_names",
    "labels_sha256",
    "loop_settings",
    "normalisation",
    "open_data",
    "open_rows",
    "resolve",
    "strategy_of",
]
