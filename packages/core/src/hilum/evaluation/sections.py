"""The sections of the HTML report. Each takes the content and returns HTML, or nothing where it has nothing to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hilum.core.types import Metric
from hilum.evaluation.comparison import Comparison, Row
from hilum.evaluation.content import ReportContent, SplitColumn, Step
from hilum.evaluation.document import key_numbers
from hilum.evaluation.figures import interval_strip, pr_figure, reliability_figure, roc_figure
from hilum.evaluation.intervals import METRICS, MIN_GROUPS
from hilum.evaluation.markup import (
    count,
    how_to_read,
    inline,
    named,
    p_value,
    percent,
    plural,
    row,
    signed,
    stacked,
    table,
    text,
)
from hilum.evaluation.report import Finding


def flow(c: ReportContent) -> str:
    if not c.flow:
        return ""
    ends = "".join(
        f'<div class="box{" judged" if s.name == c.split else ""}"><div>{text(s.name)}</div><b>{s.images:,}</b>'
        f"<small>{text(plural(c.image))}, {count(s.groups, c.group)}{_unjudged(s)}</small></div>"
        for s in c.splits
    )
    return flow_chart(c.flow, ends=ends)


def flow_chart(steps: Sequence[Step], *, ends: str = "") -> str:
    """Boxes from the top down, what left beside each; ``ends`` is HTML of the boxes that the last one falls into."""
    parts = []
    for step in steps:
        box = (
            f'<div class="box"><div>{text(step.label)}</div><b>{step.count:,}</b><small>{text(step.unit)}</small></div>'
        )
        losses = sorted(step.left.items(), key=lambda kv: (-kv[1], kv[0]))
        left = "".join(f"<tr><td>{n:,}</td><td>{text(reason)}</td></tr>" for reason, n in losses)
        side = f'<div class="arm"></div><div class="left"><table>{left}</table></div>' if left else ""
        parts.append(f'<div class="row"><div class="cell">{box}</div>{side}</div>')
    if ends:
        parts.append(f'<div class="ends">{ends}</div>')
    words = "From the top down, every file that was found ends in exactly one place. To the right, what left and why."
    return how_to_read(words) + f'<div class="flow">{"".join(parts)}</div>'


def _unjudged(s: SplitColumn) -> str:
    reasons = ", ".join(f"{n:,} {text(reason)}" for reason, n in s.left.items())
    return f"<br>{s.judged:,} judged, not: {reasons}" if s.judged is not None and reasons else ""


def splits(c: ReportContent) -> str:
    if not c.splits:
        return ""
    groups, images = text(plural(c.group)), text(plural(c.image))
    rows = [
        row(groups.capitalize(), *(f"{s.groups:,}" for s in c.splits)),
        row(images.capitalize(), *(f"{s.images:,}" for s in c.splits)),
    ]
    for f in c.findings:
        cells = []
        for s in c.splits:
            n, n_groups, known = s.positive.get(f.name, (0, 0, 0))
            share = percent(n / known) if known else "–"
            shown = f"{n:,}<small>{share}, {count(n_groups, c.group)}</small>"
            cells.append(shown if f.name in s.positive else "–")
        rows.append(row(text(f.name), *cells))
    words = (
        f"Each {text(c.group)} stands in one split only, with all its {images}. The model learned from <i>train</i>; "
        f"the checkpoint and the thresholds were chosen on <i>val</i>; this page is about <i>{text(c.split)}</i>."
        if any(s.name == "train" for s in c.splits)
        else f"This page is about {images} of another study than the one the model was trained and selected on."
    )
    words += f" By finding: positive {images}, their share, and the {groups} they come from."
    return how_to_read(words) + table(["", *(text(s.name) for s in c.splits)], rows, css="narrow")


def findings(c: ReportContent) -> str:
    ends = [f.metrics["auroc"].lo for f in c.findings]
    lo = min([0.5, *(math.floor(10 * v) / 10 for v in ends if v is not None)])
    rows = []
    for f in c.findings:
        first = text(f.name) + (f"<small>{f.n_unknown:,} unknown</small>" if f.n_unknown else "")
        counts = (
            f"{f.n:,}<small>{count(f.n_groups, c.group)}</small>",
            f"{f.n_positive:,}<small>{count(f.n_positive_groups, c.group)}</small>",
            percent(f.prevalence),
        )
        if f.reason:
            reason = named(f.reason, group=c.group, row=c.image)
            rows.append(row(first, *counts, f'<td class="no" colspan="4">not computable: {reason}</td>'))
            continue
        strip = f'<td class="strip">{interval_strip(f.metrics["auroc"], lo=lo)}</td>'
        rows.append(row(first, *counts, strip, *(stacked(f.metrics[m]) for m in METRICS)))
    covered = "all findings" if len(c.covered) == len(c.findings) else f"{len(c.covered)} of {len(c.findings)} findings"
    foot = row(
        f"Mean<small>{covered}</small>",
        '<td colspan="3"></td>',
        f'<td class="strip">{interval_strip(c.macro["auroc"], lo=lo)}</td>',
        *(stacked(c.macro[m]) for m in METRICS),
    )
    words = (
        "<i>AUROC</i> is the chance that a positive scores above a negative: 0.5 is guessing, 1 is perfect. "
        "<i>AUPRC</i> must be held against the prevalence, which is what guessing gives. <i>Brier</i> is the mean "
        "squared error of the probability: lower is better. Below each value its 95 % interval over redraws of "
        f"{text(plural(c.group))}. A finding that cannot be computed says why and is no part of the mean."
    )
    axis = f'<th scope="col" class="strip">{interval_strip(None, lo=lo)}</th>'
    head = ["Finding", text(plural(c.image).capitalize()), "Positive", "Prevalence", axis, "AUROC", "AUPRC", "Brier"]
    return how_to_read(words) + table(head, rows, foot=foot)


def operating(c: ReportContent) -> str:
    if not any(f.point or f.point_reason for f in c.findings):
        return ""
    rows = []
    for f in c.findings:
        if f.point is None or f.at is None:
            reason = named(f.point_reason, group=c.group, row=c.image)
            rows.append(row(text(f.name), f'<td class="no" colspan="6">none: {reason}</td>'))
            continue
        k = f.at.counts
        rates = (stacked(m, as_percent=True) for m in (f.at.sensitivity, f.at.specificity, f.at.ppv, f.at.npv))
        first = f"{text(f.name)}<small>{_rule(c, f)}</small>"
        rows.append(row(first, f"{f.point.threshold:.3g}", *rates, f"{k.tp:,} / {k.fp:,} / {k.fn:,} / {k.tn:,}"))
    sources = ", ".join(sorted({f.point.split for f in c.findings if f.point})) or "val"
    words = (
        "A score at or above the threshold is called positive. Thresholds were chosen on "
        f"<i>{text(sources)}</i> by the rule named. <i>Sensitivity</i>: of the positive {text(plural(c.image))}, how "
        "many were called. <i>Specificity</i>: of the negative, how many were not. <i>PPV</i> and <i>NPV</i>, how "
        "often a call is right, hold only where the finding is as common as here. Below each its 95 % interval."
    )
    head = ["Finding", "Threshold", "Sensitivity, %", "Specificity, %", "PPV, %", "NPV, %", "TP / FP / FN / TN"]
    return how_to_read(words) + table(head, rows)


def _rule(c: ReportContent, f: Finding) -> str:
    assert f.point is not None
    rule = "Youden" if f.point.rule == "youden" else f.point.rule.replace(">=", " ≥ ")
    return f"{text(rule)} on {text(f.point.split)}: {count(f.point.n, c.image)}, {count(f.point.n_groups, c.group)}"


def comparisons(c: ReportContent) -> str:
    parts = []
    for title, made in c.comparisons.items():
        rows = [_compared(c, r, made) for r in made.rows]
        foot = _compared(c, made.mean, made, f"Mean<small>{len(made.covered)} of {len(rows)} findings</small>")
        name = {"bh": "Benjamini and Hochberg", "holm": "Holm"}[made.correction]
        caption = (
            f"{made.metric.upper()} over {made.n:,} redraws of {text(plural(c.group))}, the same for both (seed "
            f"{made.seed}). p adjusted over findings after {name}."
        )
        head = ["Finding", "A", "B", "A − B", "p", "p adjusted"]
        parts.append(f'<h3 class="sub">{text(title)}</h3>' + table(head, rows, foot=foot, caption=caption))
    words = (
        "Both models are judged on the same redraws. <i>p</i> is the share of redraws in which A was not better than "
        "B: small means A is better, near 1 means B is. The adjusted value allows for having looked at many findings."
    )
    return how_to_read(words) + "".join(parts) if parts else ""


def _compared(c: ReportContent, r: Row, made: Comparison, first: str = "") -> str:
    if r.difference.value is None:
        reason = named(r.difference.reason, group=c.group, row=c.image)
        return row(first or text(r.name), f'<td class="no" colspan="5">not computable: {reason}</td>')
    ps = p_value(r.p_a_better, made.n), p_value(r.adjusted_a, made.n)
    return row(first or text(r.name), stacked(r.a), stacked(r.b), stacked(r.difference, with_sign=True), *ps)


def curves(c: ReportContent) -> str:
    found = {f.name: f for f in c.findings}
    parts = []
    for made in c.curves:
        f = found[made.finding]
        ece, slope, intercept = (f.calibration.get(k) for k in ("ece_mass", "slope", "intercept"))
        calibration = "" if ece is None else f"ECE {ece:.3f}"
        if slope is not None and intercept is not None:
            calibration += f", slope {slope:.2f}, intercept {signed(intercept, 2)}"
        figures = (
            ("ROC", f"AUROC {inline(f.metrics['auroc'])}", roc_figure(made)),
            (
                "Precision and recall",
                f"AUPRC {inline(f.metrics['auprc'])}",
                pr_figure(made, prevalence=f.prevalence or 0.0),
            ),
            ("Reliability", calibration, reliability_figure(made)),
        )
        trio = "".join(f"<figure><figcaption>{a}<span>{b}</span></figcaption>{svg}</figure>" for a, b, svg in figures)
        positive = f"{f.n_positive:,} of {count(f.n, c.image)} positive"
        numbers = f"{positive}, {f.n_positive_groups:,} of {count(f.n_groups, c.group)}"
        parts.append(
            f'<div class="finding"><h3>{text(f.name)}<span>{numbers}</span></h3><div class="trio">{trio}</div></div>'
        )
    words = (
        "<i>ROC</i>: the nearer to the upper left corner, the better. <i>Precision and recall</i>: the higher, the "
        "better; the dashed line is guessing. The diamond is the operating point. <i>Reliability</i>: how often a "
        "finding was really there against how probable the model called it, in ten bins of equal size. On the diagonal "
        "probabilities can be taken at their word; below it the model says too much. These axes end where the data do."
    )
    return how_to_read(words) + "".join(parts) if parts else ""


def methods(c: ReportContent) -> str:
    again = "; ".join(f"{text(f.name)} {f.redrawn:,}" for f in c.findings if f.redrawn)
    group, groups, images = text(c.group), text(plural(c.group)), text(plural(c.image))
    return (
        f"<p>Intervals come from {c.n_resamples:,} resamples of {groups} with replacement (seed {c.seed}); all "
        f"{images} of a {group} are drawn together, and the limits are the 2.5 % and 97.5 % quantiles. Resamples "
        f"without both classes were drawn anew{f': {again}' if again else '; none was needed'}. With fewer than "
        f"{MIN_GROUPS} positive or {MIN_GROUPS} negative {groups} no number is given.</p>"
        "<p>AUROC counts ties as one half. AUPRC is the average precision, without interpolation. Sensitivity, "
        f"specificity and predictive values carry Wilson intervals at the effective number of {images}, which is lower "
        f"where several come from one {group}. Unknown and uncertain labels are left out, finding by finding. ECE is "
        "the mean distance of observed share and mean probability over the ten bins; slope and intercept are those of "
        "a logistic regression on the logit of the score, 1 and 0 being perfect.</p>"
    )


def provenance(c: ReportContent) -> str:
    parts = []
    for title, values in (("Hashes", c.hashes), ("Environment", c.environment)):
        if values:
            rows = [row(text(k), f'<td class="mono">{text(v)}</td>') for k, v in values.items()]
            parts.append(f'<h3 class="sub">{title}</h3>' + table([], rows, css="plain"))
    if c.licences:
        rows = [
            row(text(what), f"<td>{text(licence)}</td>", f"<td>{text(source)}</td>")
            for what, licence, source in c.licences
        ]
        parts.append('<h3 class="sub">Licences</h3>' + table([], rows, css="plain"))
    if c.config:
        parts.append(f'<h3 class="sub">Configuration</h3><pre>{text(c.config)}</pre>')
    words = "With these hashes and this configuration the numbers above can be made again, and told from others."
    return how_to_read(words) + "".join(parts) if parts else ""


def key_figures(c: ReportContent) -> str:
    auroc = c.macro.get("auroc", Metric(None))
    interval = "" if auroc.lo is None or auroc.hi is None else f"<br>95 % CI {auroc.lo:.3f} – {auroc.hi:.3f}"
    refused = len(c.findings) - len(c.covered)
    boxes = [
        (
            "–" if auroc.value is None else f"{auroc.value:.3f}",
            f"mean AUROC of {count(len(c.covered), 'finding')}{interval}",
        ),
        (f"{c.n_images:,}", f"{text(plural(c.image))} judged<br>split {text(c.split)}"),
        (f"{c.n_groups:,}", f"{text(plural(c.group))}<br>the unit of every interval"),
        (f"{refused} of {len(c.findings)}", "findings not computable"),
    ]
    return key_numbers(boxes)
