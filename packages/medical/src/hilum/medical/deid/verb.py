"""The command ``hilum deid``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def deid(
    root: Path,
    out: Path,
    *,
    retain: list[str] | None = None,
    keep: list[str] | None = None,
    keep_private: Path | None = None,
    burned_in: Literal["hold", "flag", "blacken"] = "hold",
    id_key: Path | None = None,
    report: Path | None = None,
    workers: int | None = None,
) -> Any:
    """De-identify DICOM images by PS3.15 Annex E: every file ends as written, held, refused or failed, with a reason.

    Args:
        root: the archive (it is only read)
        out: the folder for the copies; OUT.private beside it keeps the journal and the report
        retain: dates, dates-shifted, uids, device, institution, patient or descriptors (Annex E's options)
        keep: keyword of a text attribute that is kept as it is, e.g. ManufacturerModelName
        keep_private: CSV of private attributes to keep (creator,group,element)
        burned_in: what happens to images that seem to have text in their pixels: hold back, flag or blacken
        id_key: file with the 32-byte key of UIDs, pseudonyms and date shifts
        report: JSON file for the report, with a CSV beside it
        workers: processes (default: one a core)
    """
    from hilum.data.identity import IdentityKey
    from hilum.medical.deid.archive import deidentify
    from hilum.medical.deid.profile import Options, names_of, private_list

    private = private_list(keep_private) if keep_private is not None else frozenset()
    options = Options(names_of(retain), names_of(keep), private)
    result = deidentify(
        root,
        out,
        key=IdentityKey.load(id_key),
        options=options,
        burned_in=burned_in,
        report=report,
        workers=workers,
    )
    counts = result.counts
    print(f"found {counts['found']}: " + ", ".join(f"{counts[s]} {s}" for s in counts if s != "found"))
    for reason, n in sorted(result.reasons.items(), key=lambda item: (-item[1], item[0])):
        print(f"{n:>8}  {reason}")
    print(f"report: {result.report}")
    return result
