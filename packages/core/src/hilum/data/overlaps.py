"""Which published datasets hold the same images, and the refusal to judge a model on what it was trained on.

Every card says what its images are drawn from. Two sets overlap where one is drawn from the other, or both, over any
number of steps, from a third. The evidence is that of the sets' own documents: it is coarse, and a user who knows that
no image is in both may say so; that is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hilum.core.errors import LeakError
from hilum.data.cards import DatasetCard, Origin, cards

Trail = tuple[tuple[str, Origin], ...]  # (set, what it is drawn from), from a set to one of its origins


@dataclass(frozen=True, slots=True)
class Overlap:
    """``first`` and ``second`` hold images of ``common``; the trails say how."""

    first: str
    second: str
    common: str
    trails: tuple[Trail, Trail]

    @property
    def why(self) -> str:
        """Every step with its evidence."""
        steps = dict.fromkeys(step for trail in self.trails for step in trail)
        return "; ".join(f"{name} draws on {o.name}: {o.what} ({o.evidence})" for name, o in steps)


def find_overlap(first: str, second: str, known: Mapping[str, DatasetCard] | None = None) -> Overlap | None:
    """How two sets share images, by the shortest trails; None for a set and itself, which patients and pixels tell."""
    known = cards() if known is None else known
    ours, theirs = _origins(first, known), _origins(second, known)
    common = sorted(ours.keys() & theirs.keys(), key=lambda name: (len(ours[name]) + len(theirs[name]), name))
    if first == second or not common:
        return None
    return Overlap(first, second, common[0], (ours[common[0]], theirs[common[0]]))


def _origins(name: str, known: Mapping[str, DatasetCard]) -> dict[str, Trail]:
    """The set itself and everything its images come from, with the shortest way there."""
    trails: dict[str, Trail] = {name: ()}
    waiting = [name]
    while waiting:
        at = waiting.pop(0)
        for origin in known[at].draws_from if at in known else ():
            if origin.name not in trails:
                trails[origin.name] = (*trails[at], (at, origin))
                waiting.append(origin.name)
    return trails


def refuse_overlap(
    trained_on: Sequence[str],
    tested_on: str | None,
    *,
    allowed: Sequence[str] = (),
    known: Mapping[str, DatasetCard] | None = None,
) -> list[str]:
    """LeakError where a set that was trained on shares images with the one that judges.

    ``allowed`` names sets of ``trained_on`` that may overlap all the same; what was allowed is returned, for the report.
    ``tested_on`` None: the study names no dataset, and nothing is known.
    """
    told = []
    for name in dict.fromkeys(trained_on):
        found = None if tested_on is None else find_overlap(name, tested_on, known)
        if found is None:
            continue
        if name not in allowed:
            raise LeakError(
                f"{tested_on} shares images with {name}, which this run learned from",
                where=found.why,
                fix=f"judge it on another set; --allow-overlap {name} where you know that no image is in both (recorded)",
            )
        told.append(
            f"{tested_on} and {name}, which this run learned from, share images; this was allowed ({found.why})."
        )
    return told
