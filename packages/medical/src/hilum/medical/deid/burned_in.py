"""Finds text burned into an image, without reading it: sharp, even strokes of one height that stand in a line.

Classical image analysis on purpose: it runs everywhere, says why, and its figures on known images are in docs/deid.md.
``none_found`` is not a promise that there is no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
Box = tuple[int, int, int, int]  # top, left, bottom, right
SIDE = 1280  # pixels of the longer side that are looked at; letters of larger images are larger too
STROKES = (5, 11, 25)  # widths of openings: strokes thinner than these stand out
CONTRAST = 0.12  # of the image's range: least step between a stroke and what surrounds it
TALL = 0.12  # of the shorter side: letters are not taller
SHORT = 5  # pixels: letters are not shorter
LETTERS = 3  # that make a line
FEW, CLEAR = 4, 0.45  # so few letters must stand out by this share of the range: ribs come in threes
REACH = 8  # heights of a line: so far it may go on to either side
_L = ("10000", "10000", "10000", "10000", "10000", "10000", "11111")
_R = ("11110", "10001", "10001", "11110", "10100", "10010", "10001")


@dataclass(frozen=True)
class Finding:
    """``text`` or a side ``marker``, and the box it fills in source pixels."""

    kind: Literal["text", "marker"]
    box: Box


@dataclass(frozen=True)
class _Glyph:
    box: Box
    level: float  # of its strokes
    step: float  # from there to what surrounds it
    stroke: float  # width, pixels
    letters: int  # 1, or more where letters touch
    sure: bool  # sharp all around; others only count beside such ones
    mask: NDArray[np.bool_]

    @property
    def height(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def width(self) -> int:
        return self.box[3] - self.box[1]


def verdict(findings: list[Finding]) -> str:
    """``text``, ``marker`` (side letters only) or ``none_found``."""
    kinds = {f.kind for f in findings}
    return "text" if "text" in kinds else "marker" if kinds else "none_found"


def find_text(image: NDArray[Any]) -> list[Finding]:
    """Text-like regions of a grey image (H, W) of any numbers; bright and dark text, along rows and along columns."""
    grey, scale = _prepared(image)
    rough = grey - ndimage.median_filter(grey, 3)
    least = max(CONTRAST, 5 * 1.4826 * float(np.median(np.abs(rough))))
    found: list[Finding] = []
    markers: list[Finding] = []
    for sign in (1.0, -1.0):
        plane = grey * np.float32(sign)
        components = _components(plane, least)
        for turned in (False, True):
            seen = plane.T if turned else plane
            glyphs, strokes = _glyphs(seen, [c.T if turned else c for c in components], least)
            lines, rest = _lines(glyphs)
            boxes = [_completed(_union(line), strokes) for line in lines]
            found += [Finding("text", _scaled(box, scale, turned, image.shape)) for box in boxes]
            if not turned:
                letters = [g for g in rest if g.sure and _side_letter(g.mask)]
                markers += [Finding("marker", _scaled(g.box, scale, False, image.shape)) for g in letters]
    texts = _merged(found)
    return texts + [m for m in _merged(markers) if not any(_overlap(m.box, t.box) for t in texts)]


def _prepared(image: NDArray[Any]) -> tuple[Plane, int]:
    """Values from 0 to 1 between extreme percentiles, shrunk by an integer factor."""
    grey = np.nan_to_num(np.asarray(image, np.float32))
    scale = max(1, -(-max(grey.shape) // SIDE))
    if scale > 1:
        rows, columns = (n // scale * scale for n in grey.shape)
        grey = grey[:rows, :columns].reshape(rows // scale, scale, columns // scale, scale).mean(axis=(1, 3))
    low, high = np.percentile(grey, (0.05, 99.95))
    return np.clip((grey - low) / max(high - low, 1e-6), 0, 1).astype(np.float32), scale


def _components(plane: Plane, least: float) -> list[NDArray[np.int32]]:
    """Labels of connected strokes that rise above an opening by more than ``least``, for every opening."""
    return [
        ndimage.label(plane - ndimage.grey_opening(plane, (size, size)) > least, np.ones((3, 3), int))[0]
        for size in STROKES
    ]


def _glyphs(plane: Plane, components: list[NDArray[np.int32]], least: float) -> tuple[list[_Glyph], NDArray[np.int64]]:
    """Strokes that are shaped like letters; and the boxes (n, 4) of all strokes, punctuation and unlikely letters
    included."""
    tallest = TALL * min(plane.shape)
    found: list[_Glyph] = []
    boxes = []
    for labels in components:
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            height, width = (s.stop - s.start for s in place)
            if height > tallest or width > 20 * height:
                continue
            boxes.append((place[0].start, place[1].start, place[0].stop, place[1].stop))
            if height >= SHORT:
                glyph = _glyph(plane, labels[place] == number, place, least)
                if glyph is not None:
                    found.append(glyph)
    return _distinct(found), np.array(boxes, np.int64).reshape(-1, 4)


def _completed(box: Box, strokes: NDArray[np.int64]) -> Box:
    """A line with the strokes beside it: blanks, points and letters that were not taken for ones."""
    height = box[2] - box[0]
    slack, left, right = 0.3 * height, box[1] - REACH * height, box[3] + REACH * height
    inside = (strokes[:, 0] >= box[0] - slack) & (strokes[:, 2] <= box[2] + slack)
    inside &= (strokes[:, 1] >= left) & (strokes[:, 3] <= right)
    near = strokes[inside & (strokes[:, 2] - strokes[:, 0] <= 1.4 * height)]
    while True:
        joined = (near[:, 1] <= box[3] + 1.4 * height) & (near[:, 3] >= box[1] - 1.4 * height)
        grown = np.vstack([near[joined], box])
        wider = (*map(int, grown[:, :2].min(0)), *map(int, grown[:, 2:].max(0)))
        if wider == box:
            return box
        box = wider  # type: ignore[assignment]


def _glyph(plane: Plane, mask: NDArray[np.bool_], place: tuple[slice, ...], least: float) -> _Glyph | None:
    """A component as a letter, where its strokes are thin, even and sharply bounded."""
    height, width = mask.shape
    area = int(mask.sum())
    fill = area / mask.size
    if not 0.12 <= fill <= 0.92 or area < 6:
        return None
    padded = np.pad(mask, 1)
    depth = ndimage.distance_transform_cdt(padded, "chessboard")[1:-1, 1:-1]
    stroke = 2.0 * float(depth.max()) - 1
    if stroke > 0.45 * height + 1:
        return None
    top, left = (max(s.start - 3, 0) for s in place)
    bottom, right = (min(s.stop + 3, n) for s, n in zip(place, plane.shape, strict=True))
    around = plane[top:bottom, left:right]
    grown = np.zeros(around.shape, bool)
    grown[place[0].start - top :, place[1].start - left :][:height, :width] = mask
    near = ndimage.binary_dilation(grown, np.ones((3, 3)), iterations=1)
    ring = ndimage.binary_dilation(near, np.ones((3, 3)), iterations=2) & ~near
    if not ring.any():
        return None
    inside, outside = around[grown], around[ring]
    inside.sort()
    level = float(inside[int(0.7 * len(inside))])
    outside.sort()
    step = level - float(outside[int(0.3 * len(outside))])  # other letters may be part of the ring
    clear = level - float(outside[len(outside) // 2])
    core = inside[len(inside) // 2 :]
    spread = float(core.std())
    if spread > 0.16 * step or step < 1.4 * least or float((outside < level - 0.6 * step).mean()) < 0.35:
        return None
    sure = spread <= 0.16 * clear and clear >= 1.4 * least and float((outside < level - 0.6 * clear).mean()) >= 0.45
    box = (place[0].start, place[1].start, place[0].stop, place[1].stop)
    return _Glyph(box, level, step, stroke, _letters_in(mask), sure, mask)


def _letters_in(mask: NDArray[np.bool_]) -> int:
    """Letters that touch in one component: as many as its width has room for, if as many strokes cross most rows."""
    room = round(mask.shape[1] / (0.75 * mask.shape[0]))
    starts = np.diff(np.pad(mask, ((0, 0), (1, 0))).astype(np.int8), axis=1) == 1
    crossings = int(np.median(starts.sum(1)))
    return int(max(1, min(room, crossings)))


def _distinct(glyphs: list[_Glyph]) -> list[_Glyph]:
    """One glyph where openings of several sizes found the same."""
    kept: list[_Glyph] = []
    for glyph in sorted(glyphs, key=lambda g: (-g.height * g.width, g.box)):
        alike = (o for o in kept if glyph.height * glyph.width > 0.5 * o.height * o.width)
        if not any(_overlap(glyph.box, other.box) > 0.5 for other in alike):
            kept.append(glyph)
    return kept


def _lines(glyphs: list[_Glyph]) -> tuple[list[list[_Glyph]], list[_Glyph]]:
    """Chains of letters of like height, level and stroke along a row; and the glyphs of no chain."""
    order = sorted(glyphs, key=lambda g: g.box[1])
    parent = list(range(len(order)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, a in enumerate(order):
        for j in range(i + 1, len(order)):
            b = order[j]
            if b.box[1] - a.box[3] > 1.6 * a.height:
                continue
            if _neighbours(a, b):
                parent[root(j)] = root(i)
    chains: dict[int, list[_Glyph]] = {}
    for i, glyph in enumerate(order):
        chains.setdefault(root(i), []).append(glyph)
    lines = [c for c in chains.values() if _is_line(c)]
    rest = [g for c in chains.values() if not _is_line(c) and len(c) <= 2 for g in c]
    return lines, rest


def _neighbours(a: _Glyph, b: _Glyph) -> bool:
    tall, small = max(a.height, b.height), min(a.height, b.height)
    gap = max(a.box[1], b.box[1]) - min(a.box[3], b.box[3])
    shared = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    return (
        tall <= 1.9 * small
        and -0.3 * small <= gap <= 1.1 * tall
        and shared >= 0.6 * small
        and abs(a.level - b.level) <= 0.15
        and max(a.stroke, b.stroke) <= 2.2 * min(a.stroke, b.stroke) + 1
    )


def _is_line(chain: list[_Glyph]) -> bool:
    """Whether letters are enough and stand on one line: feet or heads at one height."""
    sure = [g for g in chain if g.sure]
    if len(sure) < 2 or (len(chain) < LETTERS and sum(g.letters for g in chain) <= LETTERS):
        return False
    if sum(g.letters for g in chain) <= FEW and float(np.median([g.step for g in chain])) < CLEAR:
        return False
    height = float(np.median([g.height for g in chain]))
    feet, heads = np.array([g.box[2] for g in chain]), np.array([g.box[0] for g in chain])
    level = max(np.mean(np.abs(e - np.median(e)) <= max(1, 0.15 * height)) for e in (feet, heads))
    return bool(len(chain) >= 2 and level >= 0.6)


@cache
def _letters() -> tuple[NDArray[np.bool_], ...]:
    """L and R, as bitmap letters of lead markers and in an outline font, upright and mirrored."""
    from PIL import Image, ImageDraw, ImageFont

    shapes = [np.array([[c == "1" for c in row] for row in letter]) for letter in (_L, _R)]
    for letter in "LR":
        canvas = Image.new("L", (120, 120))
        ImageDraw.Draw(canvas).text((10, 5), letter, fill=255, font=ImageFont.load_default(80))
        drawn = np.asarray(canvas) > 127
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        shapes.append(drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return tuple(_normal(s) for shape in shapes for s in (shape, shape[:, ::-1]))


def _normal(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows = np.minimum((np.arange(24) + 0.5) * mask.shape[0] / 24, mask.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(16) + 0.5) * mask.shape[1] / 16, mask.shape[1] - 1).astype(int)
    return mask[np.ix_(rows, columns)]


def _side_letter(mask: NDArray[np.bool_]) -> bool:
    height, width = mask.shape
    if height < 7 or not 0.4 <= width / height <= 1.1:
        return False
    shape = _normal(mask)
    return any((shape & known).sum() >= 0.72 * (shape | known).sum() for known in _letters())


def _overlap(a: Box, b: Box) -> float:
    """Shared area over the smaller one."""
    rows, columns = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return max(rows, 0) * max(columns, 0) / max(smaller, 1)


def _union(glyphs: list[_Glyph]) -> Box:
    boxes = np.array([g.box for g in glyphs])
    return (*map(int, boxes[:, :2].min(0)), *map(int, boxes[:, 2:].max(0)))  # type: ignore[return-value]


def _scaled(box: Box, scale: int, turned: bool, shape: tuple[int, ...]) -> Box:
    """In source pixels, with a margin of a quarter of the box's smaller side."""
    top, left, bottom, right = (box[1], box[0], box[3], box[2]) if turned else box
    margin = max(2, min(bottom - top, right - left) // 4)
    top, left, bottom, right = top - margin, left - margin, bottom + margin, right + margin
    return max(top * scale, 0), max(left * scale, 0), min(bottom * scale, shape[0]), min(right * scale, shape[1])


def _merged(findings: list[Finding]) -> list[Finding]:
    """Overlapping findings of one kind as one."""
    boxes = [(f.kind, f.box) for f in findings]
    joined = True
    while joined:
        joined = False
        for i, (kind, a) in enumerate(boxes):
            for j in range(i + 1, len(boxes)):
                b = boxes[j][1]
                if _overlap(a, b) > 0.2:
                    boxes[i] = (kind, (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
                    del boxes[j]
                    joined = True
                    break
            if joined:
                break
    return [Finding(kind, box) for kind, box in boxes]
