"""The page of ``hilum doctor``: what an archive holds, what of it can be used, and what to do about the rest.

It names no file, patient or header text. Its pictures are the archive's own pixels: text burned into them is text on
the page.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hilum.data.inventory import COUNTED, histogram
from hilum.data.ledger import HARMLESS
from hilum.data.reasons import meaning
from hilum.evaluation.content import Step
from hilum.evaluation.document import caution, data_uri, document, header, key_numbers, write_document
from hilum.evaluation.figures import histogram_figure
from hilum.evaluation.markup import count, how_to_read, percent, row, table, text
from hilum.evaluation.sections import flow_chart
from hilum.verbs.contact_sheet import Picture, contact_sheet
from hilum.verbs.holdings import Archive

_SIDES = (176, 128, 96, 64)
_SHOWN = 10  # values listed of a column
_LINES = 200  # of a table of codes: more than there are, unless something made them up
_MESSAGES = 4  # listed of a reason
_CARDS = {
    "modality": "Modality",
    "view": "View",
    "body_part": "Body part",
    "vendor": "Maker",
    "laterality": "Laterality",
    "photometric": "Colour model",
    "bits_stored": "Bits stored",
    "sizes": "Rows x columns",
    "spacing_mm": "Pixel spacing, mm",
    "unit": "Unit of values",
    "window": "Window shown by default",
    "frames_axis": "What frames are",
    "frames": "Frames a file",
    "source": "Reader",
    "codec": "Codec used",
}
_ABSENT = {"unit": "none", "window": "none", "frames_axis": "one frame"}


def write_page(archive: Archive, path: Path, *, pictures: bool = True, created: str | None = None) -> Path:
    """One self-contained HTML file of at most 6 MB."""
    drawn = contact_sheet(archive.study) if pictures and not _nothing(archive) else []
    made_on = datetime.date.today().isoformat() if created is None else created
    return write_document(
        Path(path),
        lambda side: render(archive, drawn, created=made_on, side=side),
        sides=_SIDES,
        fix="leave the pictures out: --no-pictures",
    )


def _nothing(archive: Archive) -> bool:
    return not archive.counts["indexed"]


def render(archive: Archive, pictures: Sequence[Picture] = (), *, created: str = "", side: int = _SIDES[0]) -> str:
    """The page as a string."""
    counts, numbers = archive.counts, archive.numbers
    faulty, foreign = (_refused(numbers, harmless=h) for h in (False, True))
    top = header(
        "Site inventory",
        "What this archive holds",
        date=created,
        lead="Every file that was found is accounted for: read, set aside for a reason, or refused for a reason.",
        facts={
            "hilum": str(archive.study.about.get("hilum", "")),
            "key": str(archive.study.about.get("id_key", ""))[:8],
        },
    )
    boxes = [
        (f"{counts['found']:,}", "files found"),
        (
            f"{archive.usable:,}",
            f"images usable in 2-D<br>{percent(archive.usable / max(counts['found'], 1))} of files",
        ),
        (f"{numbers['groups']:,}", f"known patients<br>{count(numbers['unknown_images'], 'image')} of unknown ones"),
        (f"{faulty:,}", f"files refused<br>and {foreign:,} that hold no image"),
    ]
    return document(
        title="Site inventory",
        head=top + caution("Before you use these data", _cautions(archive, pictures)) + key_numbers(boxes),
        sections=[
            ("flow", "Where every file went", flow_chart(_flow(archive))),
            ("refused", "Refused, and what to do", _faults(archive)),
            ("noted", "Read, with something to note", _notes(archive)),
            ("syntaxes", "Transfer syntaxes and codecs", _syntaxes(archive)),
            ("content", "What the images are", _cards(archive)),
            ("numbers", "Sizes and values", _histograms(archive)),
            ("volumes", "Volumes", _volumes(archive)),
            ("labels", "Labels", _labels(archive)),
            ("pictures", "Images of every kind", _sheet(pictures, side)),
        ],
        footer="Made by hilum. For research; not a medical device, not for diagnosis. Nothing here names a patient, but "
        "pixels may: keep the page where the images may be.",
    )


def _refused(numbers: Mapping[str, Any], *, harmless: bool) -> int:
    """Files that are images and cannot be used, or (``harmless``) files that are no images."""
    faults = [(s, r, n) for (s, r), n in numbers["faults"].items() if s == "quarantined" or r.startswith("non_image")]
    return sum(n for s, r, n in faults if (s != "quarantined" or r in HARMLESS) == harmless)


def _cautions(archive: Archive, pictures: Sequence[Picture]) -> list[str]:
    numbers, lines = archive.numbers, []
    for message, n in archive.waiting().items():
        lines.append(f"{count(n, 'file')}: {text(message)}.")
    if archive.headers_only:
        lines.append(
            "Only headers were read: copies, damaged pixels and values are not known. Index again without "
            "<code>--headers-only</code> before splitting or training."
        )
    if numbers["unknown_images"]:
        lines.append(
            f"{count(numbers['unknown_images'], 'image')} {'has' if numbers['unknown_images'] == 1 else 'have'} no usable "
            "patient identifier: they can train, never validate or test. A labels table with a patient column mends that."
        )
    for code in ("same_pixels_other_patient", "uid_conflict", "issuer_missing"):
        if n := numbers["problems"].get(code):
            told = meaning(code)
            each = "which" if n == 1 else "each of which"
            lines.append(f"{count(n, 'file')}, {each} {text(told.means)}. To do: {text(told.fix)}.")
    if pictures:
        lines.append(
            "The pictures at the end are the archive's own pixels. Text burned into them (ultrasound, screenshots) can "
            "name a patient: keep this page where the images may be."
        )
    return lines


def _flow(archive: Archive) -> list[Step]:
    counts, faults = archive.counts, archive.numbers["faults"]
    left = {f"{status}: {reason}": n for (status, reason), n in faults.items() if reason != "vanished"}
    other = counts["indexed"] - archive.usable - sum(archive.left.values())
    held = dict(archive.left) | ({"labels and containers": other} if other else {})
    return [
        Step("Found", counts["found"], left=left),
        Step("Read", counts["indexed"], left=held),
        Step("Usable as 2-D images", archive.usable, unit="images"),
    ]


def _faults(archive: Archive) -> str:
    found = sorted(archive.numbers["faults"].items(), key=lambda kv: (kv[0][0], -kv[1], kv[0][1] or ""))
    lines = [
        row(
            f"<code>{text(reason)}</code>",
            text(status),
            f"{n:,}",
            f'<td class="text">{text(_sentence(meaning(reason).means))}{_said(archive, reason)}</td>',
            f'<td class="text">{text(_sentence(meaning(reason).fix))}</td>',
        )
        for (status, reason), n in found[:_LINES]
        if reason
    ]
    if not lines:
        return ""
    words = (
        "<i>Quarantined</i> files cannot be used as they are; <i>skipped</i> ones are no images, or were left out. None was "
        "changed. "
        "<code>hilum doctor STUDY --why PATH</code> explains a single file."
    )
    return how_to_read(words) + _explained(["Reason", "Status", "Files"], "file", lines)


def _said(archive: Archive, reason: str) -> str:
    """The most frequent messages, which name attributes and codecs."""
    said = [(m, n) for (own, m), n in archive.numbers["messages"].items() if own == reason][:_MESSAGES]
    return "".join(f"<small>{n:,}: {text(message)}</small>" for message, n in said)


def _notes(archive: Archive) -> str:
    lines = [
        row(
            f"<code>{text(code)}</code>",
            f"{n:,}",
            f'<td class="text">{text(_sentence(meaning(code).means))}</td>',
            f'<td class="text">{text(_sentence(meaning(code).fix))}</td>',
        )
        for code, n in list(archive.numbers["problems"].items())[:_LINES]
    ]
    words = "These files are read. What is odd about them was measured and resolved as the table says, never silently."
    return how_to_read(words) + _explained(["Note", "Files"], "file", lines) if lines else ""


def _explained(head: Sequence[str], what: str, lines: Sequence[str]) -> str:
    return table([*head, _left(f"The {what} ..."), _left("What to do")], lines, css="codes")


def _left(words: str) -> str:
    return f'<th scope="col" class="text">{words}</th>'


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _syntaxes(archive: Archive) -> str:
    lines = [
        row(
            text(s.name) + (f"<small>{text(s.uid)}</small>" if s.name != s.uid else ""),
            f"{s.files:,}",
            f"{s.unread:,}",
            f'<td class="text">{text(", ".join(name for name, _ in s.codecs.most_common()) or "–")}</td>',
        )
        for s in archive.syntaxes()
    ]
    words = "How the files are compressed, how many wait for a codec that is not installed, and what reads the others."
    head = ["Transfer syntax", "Files", "Waiting", _left("Read by")]
    return how_to_read(words) + table(head, lines, css="codes") if lines else ""


def _cards(archive: Archive) -> str:
    cards = [_card(name, title, archive.numbers.get(name, {})) for name, title in _CARDS.items()]
    assert set(_CARDS) >= set(COUNTED) - {"transfer_syntax"}
    made = "".join(c for c in cards if c)
    words = "Of the images that are read. A dash means that the header does not say, or says what is no listed code."
    return how_to_read(words) + f'<div class="cards">{made}</div>' if made else ""


def _card(name: str, title: str, values: Mapping[str, int]) -> str:
    if not values or set(values) == {"-"}:
        return ""
    most = max(values.values())
    shown = list(values.items())[:_SHOWN]
    lines = [
        row(
            text(_ABSENT.get(name, "–") if value == "-" else value),
            f"{n:,}",
            f'<td class="meter"><i style="width:{100 * n / most:.1f}%"></i></td>',
        )
        for value, n in shown
    ]
    if rest := len(values) - len(shown):
        more = sum(values.values()) - sum(n for _, n in shown)
        lines.append(
            f'<tr class="rest"><th scope="row">{count(rest, "other value")}</th><td>{more:,}</td><td></td></tr>'
        )
    return f"<div><h3>{title}</h3>{table([], lines)}</div>"


def _histograms(archive: Archive) -> str:
    index = archive.study.index.select(
        ["status", "role", "rows", "columns", "spacing_mm", "bytes", "unit", "p005", "p995"]
    )
    images = index.filter(
        pc.fill_null(pc.and_kleene(pc.equal(index["status"], "indexed"), pc.equal(index["role"], "image")), False)
    )

    def numbers(column: Any) -> Any:
        return pc.drop_null(column).to_numpy(zero_copy_only=False).astype(np.float64)

    spacing = images["spacing_mm"].combine_chunks()
    spaced = spacing.filter(pc.fill_null(pc.greater_equal(pc.list_value_length(spacing), 2), False))
    series = [
        ("Longer side", "pixels", numbers(pc.max_element_wise(images["rows"], images["columns"]))),
        ("Pixel spacing (rows)", "mm", numbers(pc.list_element(spaced, 0))),
        ("Size on disk", "MB", numbers(images["bytes"]) / 1e6),
    ]
    units = pc.value_counts(pc.fill_null(images["unit"], "-")).to_pylist()
    for unit in sorted(units, key=lambda u: -u["counts"])[:2]:
        own = images.filter(pc.equal(pc.fill_null(images["unit"], "-"), unit["values"]))
        name = "no unit" if unit["values"] == "-" else unit["values"]
        series.append((f"Darkest values ({name})", "0.5th percentile of an image", numbers(own["p005"])))
        series.append((f"Brightest values ({name})", "99.5th percentile of an image", numbers(own["p995"])))
    drawn = []
    for title, label, values in series:
        made = histogram(values)
        if made is not None:
            counts, lo, hi = made
            figure = histogram_figure(counts.tolist(), lo, hi, title=f"Histogram: {title}", x_label=label)
            drawn.append(
                f"<figure><figcaption>{text(title)}<span>{count(len(values), 'image')}</span></figcaption>{figure}</figure>"
            )
    words = (
        "One entry an image; the end bars hold what lies beyond. Values are those after rescale, before polarity and "
        "window. A second hill often is a second maker, unit or export path."
    )
    return how_to_read(words) + f'<div class="trio">{"".join(drawn)}</div>' if drawn else ""


def _volumes(archive: Archive) -> str:
    found = archive.volumes
    if not found["volumes"]:
        return ""
    flat, deep = found["volumes"] - found["deep"], found["deep"]
    lines = [
        row(
            f"<code>{text(code)}</code>",
            f"{n:,}",
            f"{usable:,}",
            f'<td class="text">{text(_sentence(meaning(code).means))}</td>',
            f'<td class="text">{text(_sentence(meaning(code).fix))}</td>',
        )
        for code, (n, usable) in found["problems"].items()
    ]
    told = (
        f"<p>{found['series']:,} series make "
        f"{count(found['volumes'], 'volume')}: {flat:,} of one frame, {deep:,} of several, of which "
        f"<b>{found['deep_usable']:,} usable</b> as they are.</p>"
    )
    words = "A volume that is not usable is not lost: it says why, and an explicit option resolves it where one can."
    return told + (
        how_to_read(words) + _explained(["Problem", "Volumes", "Of them usable"], "volume", lines) if lines else ""
    )


def _labels(archive: Archive) -> str:
    if not archive.labels:
        return ""
    lines = [row(text(name), *(f"{n:,}" for n in numbers)) for name, numbers in archive.labels.items()]
    words = "Of the usable images; what is neither is unknown and takes no part."
    return how_to_read(words) + table(["Finding", "Positive", "Negative", "Uncertain"], lines, css="narrow")


def _sheet(pictures: Sequence[Picture], side: int) -> str:
    if not pictures:
        return ""
    words = (
        "Every kind (modality, view, maker) before any twice, by lot within a kind. Shown in the window named below "
        "each; of several frames the middle one."
    )
    return how_to_read(words) + f'<div class="sheet">{"".join(_figure(p, side) for p in pictures)}</div>'


def _figure(picture: Picture, side: int) -> str:
    about = picture.row
    kind = " ".join(str(about[name]) for name in ("modality", "view", "body_part") if about.get(name)) or "no modality"
    lines = [f"<b>{text(kind)}</b>"]
    if about.get("vendor"):
        lines.append(text(about["vendor"]))
    frames = int(about.get("frames") or 1)
    size = f"{about['rows']} x {about['columns']}" + (f", frame {picture.frame + 1} of {frames}" if frames > 1 else "")
    lines += [text(size), text(picture.window), f"<code>{text(str(about['sample_id'])[:12])}</code>"]
    if picture.pixels is None:
        shown = f'<div class="undrawn">not drawn:<br>{text(picture.reason)}</div>'
    else:
        shown = f'<img alt="{text(kind)}" src="{data_uri(picture.pixels, side)}">'
    return f"<figure>{shown}<figcaption>{'<br>'.join(line for line in lines if line)}</figcaption></figure>"
