"""``hilum index``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.data.findings import Labels


def index(
    root: Path,
    *,
    out: Path,
    labels: Path | None = None,
    join: str = "path",
    group: str | None = None,
    finding: list[str] | None = None,
    dataset: str | None = None,
    reports: Path | None = None,
    id_key: Path | None = None,
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    headers_only: bool = False,
    volumes: list[str] | None = None,
    exclude: list[str] | None = None,
    max_quarantined: str | None = None,
    max_unmatched: float = 0.01,
    licence: str | None = None,
) -> Any:
    """Read an archive into a study: every file ends as indexed, skipped or quarantined, with a reason.

    Args:
        root: the archive (it is only read)
        out: the study folder to make or to bring up to date
        labels: CSV or Parquet with one row a file, image, study or patient
        join: how label rows find images: path, sop_instance_uid, study_instance_uid, accession or patient_id
        group: column of the labels table that holds the patient, for files whose header does not say
        finding: columns of the labels table that are findings, or the one column of classes (default: every column that
            reads as 1, 0, -1 or blank; else the text column called class, label or diagnosis)
        dataset: a known public layout instead of --labels, e.g. medical/nih-cxr14 (hilum list datasets)
        reports: CSV or Parquet with reports (kept in STUDY/private only)
        id_key: file with the 32-byte key that patient identifiers are hashed with
        workers: reading processes (default: one a core)
        executor: where files are read: local, or ray for the cluster that Ray is started on (extra `ray`)
        headers_only: do not decode pixels (fast look; no hashes and statistics)
        volumes: an option on how series become volumes, e.g. allow_gaps
        exclude: glob of paths to leave out
        max_quarantined: exit 0 although files were quarantined, up to this share, e.g. 1%
        max_unmatched: share of label rows or files that may find no partner
        licence: licence of the images, which runs and exports state (default: the dataset's)
    """
    from hilum.data.index import index_archive

    chosen = registry.build("dataset", dataset) if dataset else None
    if chosen is not None and labels is not None:
        raise HilumError("--dataset brings its own labels", fix="leave out --labels or --dataset")
    result = index_archive(
        root,
        out,
        labels=labels,
        join=join,
        group=group,
        findings=finding,
        dataset=chosen,
        reports=reports,
        id_key=id_key,
        workers=workers,
        executor=executor,
        headers_only=headers_only,
        volumes=volumes or (),
        exclude=exclude or (),
        max_quarantined=max_quarantined,
        max_unmatched=max_unmatched,
        licence=licence,
    )
    print(summary(result.counts))
    if result.kinds is not None:
        print(label_columns(result.kinds))
    for difference in _differences(chosen, result.study):
        print(f"note: {difference}")
    print(f"study: {result.study}")
    return result


def _differences(dataset: Any, study: Path) -> list[str]:
    """How a published set differs here from what its card says."""
    card = getattr(dataset, "card", None)
    if card is None:
        return []
    from hilum.data.cards import differences
    from hilum.data.study import Study

    return differences(card, Study(study))


def label_columns(kinds: Labels) -> str:
    """Which columns of the table became labels and which did not; names only."""
    taken = f"findings: {', '.join(kinds.findings)}" if kinds.findings else "findings: none"
    if kinds.classes is not None:
        taken = f"classes: column {kinds.classes!r}, {len(kinds.columns['class'].drop_null().unique())} of them"
    if not kinds.ignored:
        return taken
    return f"{taken}\nignored columns: {', '.join(kinds.ignored)} (--finding NAME takes one of them)"


def summary(counts: dict[str, Any]) -> str:
    """``found 412 = indexed 398 + skipped 8 + quarantined 6`` and the reasons, most frequent first."""
    lines = [
        f"found {counts['found']} = indexed {counts['indexed']} + skipped {counts['skipped']} + quarantined {counts['quarantined']}"
    ]
    reasons = sorted(counts.get("reasons", {}).items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {n:>6}  {reason}" for reason, n in reasons if reason]
    if counts.get("labels"):
        lines.append("labels: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts["labels"].items()))
    return "\n".join(lines)
