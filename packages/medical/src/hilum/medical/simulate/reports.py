"""A report for each simulated study: template sentences that say what was put in, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .findings import FINDINGS, Finding

PRESENT: Mapping[str, Sequence[str]] = {
    "nodule": (
        "There is a {size} mm {density} nodule in the {side} {zone} zone.",
        "A rounded {density} nodule of {size} mm projects over the {side} {zone} lung zone.",
        "{Side} {zone} zone nodule measuring about {size} mm.",
    ),
    "nodules": (
        "There are {count} {density} nodules of up to {size} mm in the {side} lung.",
        "{Count} rounded {density} nodules of about {size} mm project over the {side} lung.",
    ),
    "effusion": (
        "{Amount} {side} pleural effusion with blunting of the costophrenic angle.",
        "There is a {amount} pleural effusion on the {side}.",
        "Meniscus sign at the {side} base, in keeping with a {amount} effusion.",
    ),
    "cardiomegaly": (
        "The heart is {enlarged} enlarged.",
        "{Enlarged} cardiomegaly.",
        "The cardiac silhouette is {enlarged} enlarged.",
    ),
    "pneumothorax": (
        "{Amount} {side} pneumothorax with a visible visceral pleural line.",
        "There is a {amount} {side} apical pneumothorax.",
        "Air in the {side} pleural space; the lung edge is seen about {size} mm from the apex.",
    ),
    "consolidation": (
        "Airspace opacity in the {lobe}, consistent with consolidation.",
        "There is consolidation of the {lobe}.",
        "Patchy consolidation projects over the {side} {zone} zone.",
    ),
}
ABSENT: Mapping[str, Sequence[str]] = {
    "nodule": ("No pulmonary nodule is seen.", "No suspicious nodule.", "There is no focal nodule."),
    "effusion": ("No pleural effusion.", "The costophrenic angles are sharp.", "The pleural spaces are free of fluid."),
    "cardiomegaly": ("The heart size is normal.", "Normal cardiac silhouette.", "The heart is not enlarged."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax.", "No pleural air is seen."),
    "consolidation": ("No consolidation.", "No focal airspace opacity.", "There is no consolidation."),
}
IMPRESSION: Mapping[str, str] = {
    "nodule": "{Side} {zone} zone nodule.",
    "nodules": "{Count} {side} lung nodules.",
    "effusion": "{Side} pleural effusion.",
    "cardiomegaly": "Cardiomegaly.",
    "pneumothorax": "{Side} pneumothorax.",
    "consolidation": "{Lobe} consolidation.",
}
NORMAL = ("No acute cardiopulmonary abnormality.", "Normal chest radiograph.", "No acute disease.")
TECHNIQUE = ("Simulated chest radiograph, {views}.", "{views} view of a simulated chest.")


def _form(finding: Finding) -> str:
    return "nodules" if finding.name == "nodule" and len(finding.centres_mm) > 1 else finding.name


def _words(finding: Finding) -> dict[str, str]:
    large = {"effusion": 80, "pneumothorax": 50, "cardiomegaly": 44}.get(finding.name, 1e9)
    small = {"effusion": 58, "pneumothorax": 38, "cardiomegaly": 34}.get(finding.name, 0.0)
    grade = 0 if finding.size_mm < small else 2 if finding.size_mm > large else 1
    words = {
        "side": finding.side,
        "lobe": finding.lobe,
        "zone": finding.zone,
        "size": str(round(finding.size_mm)),
        "count": ("one", "two", "three", "four", "five")[max(len(finding.centres_mm), 1) - 1],
        "density": "calcified" if finding.strength > 1.9 else "solid",
        "amount": ("small", "moderate", "large")[grade],
        "enlarged": ("mildly", "moderately", "markedly")[grade],
    }
    words |= {name.capitalize(): value.capitalize() for name, value in words.items()}
    words["Enlarged"] = ("Mild", "Moderate", "Marked")[grade]
    return words


def write_report(findings: Mapping[str, Finding], rng: np.random.Generator, *, views: Sequence[str]) -> str:
    """Sections TECHNIQUE, FINDINGS and IMPRESSION; every finding is stated or denied, in varying order and words.

    Some reports leave out single denials, as real ones do.
    """

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    sentences = []
    for name in rng.permutation(list(FINDINGS)):
        if name in findings:
            sentences.append(pick(PRESENT[_form(findings[name])]).format(**_words(findings[name])))
        elif rng.random() < 0.85:
            sentences.append(pick(ABSENT[name]))
    concluded = [
        IMPRESSION[_form(findings[name])].format(**_words(findings[name])) for name in FINDINGS if name in findings
    ]
    technique = pick(TECHNIQUE).format(views=" and ".join(dict.fromkeys(views)))
    return f"TECHNIQUE: {technique}\nFINDINGS: {' '.join(sentences)}\nIMPRESSION: {' '.join(concluded) or pick(NORMAL)}"
