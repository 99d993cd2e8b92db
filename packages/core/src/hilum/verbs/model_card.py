"""The README.md of an export: what the model is, what goes in, what comes out, how good it was, what it is not for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilum.verbs.deployed import Preprocessing
from hilum.verbs.loading import LoadedModel
from hilum.verbs.tracked import CODE_LICENCE, NO_LICENCE

LIMITS = "Research use only; not a medical device."
NON_COMMERCIAL = re.compile(r"non[\s_-]?commercial|\bnc\b", re.IGNORECASE)
METRICS = ("auroc", "auprc", "brier")
FITS = {
    "pad": "the whole image, proportions kept",
    "squash": "the whole image, proportions lost",
    "crop": "shorter side to size * 256 / 224, centre cut out",
}


def licences(model: LoadedModel) -> list[tuple[str, str, str]]:
    """(weights, licence, source) of every exported network; ``RUN/exported`` knows what each started from."""
    rows = []
    for name, module in model.objective.exported().items():
        spec, card = getattr(module, "spec", None), _json(model.folder / "exported" / f"{name}.json")
        if spec is not None:
            licence, source = (str(card.get(key) or getattr(spec, key)) for key in ("licence", "source"))
            rows.append((name, licence, source))
    return rows


def _data_licence(model: LoadedModel) -> str:
    """As the run noted it with its weights."""
    return str(_json(model.folder / "exported" / "encoder.json").get("data_licence") or NO_LICENCE)


def non_commercial(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Those whose licence forbids commercial use."""
    return [row for row in rows if NON_COMMERCIAL.search(row[1])]


def metadata(model: LoadedModel) -> dict[str, str]:
    """What the ONNX file says of itself, as texts."""
    import importlib.metadata

    run = model.recipe.get("run", {})
    weights = "; ".join(f"{name}: {licence} ({source})" for name, licence, source in licences(model))
    return {
        "names": json.dumps(list(model.labels.names) if model.labels else [], ensure_ascii=False),
        "task": model.labels.task if model.labels else "",
        "hilum": importlib.metadata.version("hilum"),
        "recipe": model.recipe.name,
        "config_sha256": model.recipe.sha256,
        "sha256": model.sha256,
        "index_digest": str(run.get("index_digest", "")),
        "split_digest": str(run.get("split_digest", "")),
        "value_meaning": "modality values (stored * slope + intercept), sign flipped where the image displays inverted; "
        "window in the same values: lo = centre - width / 2, hi = centre + width / 2",
        "licence": f"code: Apache-2.0; weights: {weights or 'unknown'}",
        "use": LIMITS,
    }


def model_card(model: LoadedModel, preprocessing: Preprocessing, *, to: str, parity: Mapping[str, Any]) -> str:
    """Markdown with the front matter of a model hub."""
    sections = (
        _front(model), _what(model), _inputs(model, preprocessing, to), _use(to), _results(model), _provenance(model),
        _checks(parity, to), _licences(model), _limits(model),
    )  # fmt: skip
    return "\n".join(line for section in sections for line in (*section, "")).rstrip() + "\n"


def _front(model: LoadedModel) -> list[str]:
    rows = licences(model)
    told = {licence for _, licence, _ in rows}
    known = "apache-2.0" if told == {"Apache-2.0"} else "other"
    names = [] if known != "other" else [f"license_name: {json.dumps('; '.join(sorted(told)) or 'unknown')}"]
    return [
        "---", "library_name: hilum", f"license: {known}", *names, "tags: [medical-imaging, research-use-only]", "---",
    ]  # fmt: skip


def _what(model: LoadedModel) -> list[str]:
    recipe, labels = model.recipe, model.labels
    encoders = ", ".join(str(e["name"]) for e in recipe.get("encoders", {}).values())
    counts = labels.counts.get("train", {}) if labels else {}
    trained = {name: f" (train: {c[0]:,} positive, {c[1]:,} negative, {c[2]:,} unknown)" for name, c in counts.items()}
    findings = [f"{i}. {name}{trained.get(name, '')}" for i, name in enumerate(labels.names)] if labels else []
    return [
        f"# {model.folder.resolve().name}",
        "",
        f"**{LIMITS}**",
        "",
        f"- Task: {labels.task if labels else 'image features'}",
        f"- Encoder: {encoders}; objective: {recipe['objective']['name']}; recipe: {recipe.name}"
        + (f" (card {recipe['paper']})" if recipe.get("paper") else ""),
        f"- Trained on {model.facts.get('rows', {}).get('train', 'an unrecorded number of')} images"
        + (
            f", {recipe['run']['fraction']:.0%} of the training groups" if recipe.get("run", {}).get("fraction") else ""
        ),
        f"- Images that were selected: `{recipe['where']}`",
        *(["", "Outputs, in this order:", "", *findings] if findings else []),
    ]


def _inputs(model: LoadedModel, p: Preprocessing, to: str) -> list[str]:
    labels = model.labels
    graph = to == "onnx"
    wanted = {
        "onnx": "`image` float32 (N, 1, H, W), `window_centre` and `window_width` float32 (N,); any N, any H and W from 2 up",
        "safetensors": "decoded images of any size (`hilum.core.types.Pixels`), each with its window",
    }
    reduced = f"area average to {p.cache_side} pixels on the short side (never enlarged), " if p.cache_side else ""
    link = "softmax over the classes" if labels and labels.task == "multiclass" else "a sigmoid for each finding"
    return [
        "## Input and output",
        "",
        f"- Input: {wanted[to]}.",
        "- Values: modality values, stored * slope + intercept. Of an image that displays inverted (MONOCHROME1,"
        " PresentationLUTShape INVERSE) negate the values and the window's centre, so that larger is brighter.",
        "- Window: lo = centre - width / 2, hi = centre + width / 2 in the same values (DICOM's LINEAR_EXACT). For"
        " DICOM's LINEAR with centre c and width w give c - 0.5 and w - 1."
        + (" Sigmoid windows and VOI look-up tables are not in the graph." if graph else ""),
        "- Values are finite. "
        + ("Replace padding by the background first." if graph else "Padding that the decoder marks is left out."),
        f"- Done inside: {reduced}fit to {p.size[0]} x {p.size[1]} ({p.fit}: {FITS[p.fit]}; border: {p.border};"
        f" interpolation: {p.interpolation}), window, clip to [0, 1], {p.channels} channels, normalisation.",
        f"- Normalisation of values in [0, 1]: mean {_numbers(p.mean)}, standard deviation {_numbers(p.std)}.",
        f"- Output: `scores` (N, {len(labels.names)}), {link}." if labels else "- Output: pooled features.",
    ]


def _use(to: str) -> list[str]:
    code = {
        "onnx": (
            "import numpy as np, onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            "# values: (H, W) modality values; c, w: window centre and width",
            'feed = {"image": values[None, None].astype(np.float32)}',
            'feed |= {"window_centre": np.float32([c]), "window_width": np.float32([w])}',
            '(scores,) = session.run(["scores"], feed)',
        ),
        "safetensors": (
            "from hilum.core.types import Pixels, Window",
            "from hilum.verbs.deployed import load_deployed",
            'model = load_deployed("FOLDER")',
            "# values: (H, W) modality values; lo, hi: the window's ends",
            "scores = model.predict([Pixels(values[None], window=Window(lo, hi))]).scores",
        ),
    }
    return ["## Use", "", "```python", *code[to], "```"]


def _results(model: LoadedModel) -> list[str]:
    """Metrics and operating points of every evaluation that stands in the run."""
    lines = ["## Results", ""]
    for path in sorted((model.folder / "eval").glob("*/metrics.json")):
        told = _json(path)
        if not told.get("findings"):
            continue
        if told.get("model_sha256", model.sha256) != model.sha256:
            lines += [f"The evaluation on {path.parent.name} judged other weights of this run and is left out.", ""]
            continue
        lines += _evaluation(path.parent.name, told)
    if len(lines) == 2:
        lines.append("Not evaluated: `hilum evaluate RUN --split test`, then export again.")
    elif model.checkpoint != "best":
        lines.append(f"These are the weights of checkpoint {model.checkpoint!r}; check that it is what was evaluated.")
    return lines


def _evaluation(name: str, told: Mapping[str, Any]) -> list[str]:
    how = told.get("intervals", {})
    lines = [
        f"### {name}: {told['n']:,} images, {told['n_groups']:,} groups",
        "",
        f"Brackets: {how.get('kind', '95 %')} intervals over {how.get('n', '?')} resamples of {how.get('resampled', 'groups')}.",
        "",
        "| finding | positive / known | AUROC | AUPRC | Brier |",
        "| --- | --- | --- | --- | --- |",
    ]
    for finding in told["findings"]:
        cells = [_metric(finding["metrics"].get(m)) for m in METRICS]
        lines.append(_row(finding["name"], f"{finding['n_positive']:,} / {finding['n']:,}", *cells))
    macro = told.get("macro", {})
    lines.append(_row("macro mean", "", *(_metric(macro.get("metrics", {}).get(m)) for m in METRICS)))
    points = [f for f in told["findings"] if f.get("point")]
    if points:
        lines += ["", "| finding | threshold | chosen by | chosen on |", "| --- | --- | --- | --- |"]
    for finding in points:
        p = finding["point"]
        source = f"{p['split']} ({p['n']:,} images, {p['n_groups']:,} groups)"
        lines.append(_row(finding["name"], f"{p['threshold']:.6g}", p["rule"], source))
    without = [
        f"{f['name']} ({f.get('point_reason') or 'none chosen'})" for f in told["findings"] if not f.get("point")
    ]
    if without:
        lines += ["", f"No threshold: {'; '.join(without)}."]
    return [*lines, *(f"\n{warning}" for warning in told.get("warnings", ())), ""]


def _provenance(model: LoadedModel) -> list[str]:
    run = model.recipe.get("run", {})
    rows = {
        "data (index)": run.get("index_digest"), "split": run.get("split_digest"), "configuration": model.recipe.sha256,
        "weights": model.sha256, "hilum": metadata(model)["hilum"], "checkpoint": model.checkpoint,
    }  # fmt: skip
    return ["## Provenance", "", *(f"- {name}: `{value or 'not recorded'}`" for name, value in rows.items())]


def _checks(parity: Mapping[str, Any], to: str) -> list[str]:
    what = "The graph was run by onnxruntime" if to == "onnx" else "This folder was read back"
    counts = parity["counts"]
    return [
        "## Checks",
        "",
        f"{what} and compared with the trained model on {counts['real']} real and {counts['random']} random images:"
        f" the largest difference of an output is {parity['max_abs_difference']:.2g} (allowed: {parity['tolerance']:g})."
        " `parity.json` has the table; `samples.safetensors` holds the random images with their windows and expected"
        " outputs, for a check anywhere.",
        *(["", *parity["notes"]] if parity["notes"] else []),
    ]


def _licences(model: LoadedModel) -> list[str]:
    rows = licences(model)
    warning = [
        f"**The weights of {name} are {licence}: not for commercial use.**" for name, licence, _ in non_commercial(rows)
    ]
    return [
        "## Licences",
        "",
        "| what | licence | source |",
        "| --- | --- | --- |",
        _row("code (hilum)", CODE_LICENCE, ""),
        *(_row(f"start of {name}", licence, source) for name, licence, source in rows),
        _row("training data", _data_licence(model), ""),
        *(["", *warning] if warning else []),
    ]


def _limits(model: LoadedModel) -> list[str]:
    return [
        "## Limits of use",
        "",
        f"{LIMITS} It has not been validated for diagnosis, triage or any decision about a patient.",
        f"It knows images like those it was trained on (`{model.recipe['where']}`); on other modalities, views, devices,"
        " hospitals or age groups its scores mean nothing until evaluated there. Thresholds hold for the data they were"
        " chosen on. Scores are not probabilities unless their calibration was checked.",
    ]


def _metric(told: Mapping[str, Any] | None) -> str:
    if not told:
        return ""
    if told.get("value") is None:
        return f"not computable: {told.get('reason', '')}"
    ends = f" [{told['lo']:.3f}, {told['hi']:.3f}]" if told.get("lo") is not None and told.get("hi") is not None else ""
    return f"{told['value']:.3f}{ends}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.6g}" for v in (values if len(set(values)) > 1 else values[:1]))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
