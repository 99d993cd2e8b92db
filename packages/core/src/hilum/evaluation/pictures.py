"""The report's curves as SVG files that stand alone: for a tracking store, a slide, a paper."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from hilum.evaluation.content import curves_of
from hilum.evaluation.figures import pr_figure, reliability_figure, roc_figure
from hilum.evaluation.report import Report


def standalone_figures(report: Report) -> dict[str, str]:
    """``FINDING-roc``, ``FINDING-pr`` and ``FINDING-reliability`` -> SVG, of every finding that is computable."""
    pictures: dict[str, str] = {}
    for made in curves_of(report):
        prevalence = report.finding(made.finding).prevalence or 0.0
        kinds = {
            "roc": roc_figure(made),
            "pr": pr_figure(made, prevalence=prevalence),
            "reliability": reliability_figure(made),
        }
        pictures |= {f"{made.finding.replace('/', ' ')}-{kind}": _alone(svg) for kind, svg in kinds.items()}
    return pictures


def _alone(svg: str) -> str:
    head, rest = svg.split(">", 1)
    opened = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="600" font-family="sans-serif" ', 1)
    return f'{opened}><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{rest}\n'


@cache
def _style() -> str:
    """The page's rules for drawings, in its light colours."""
    css = (files("hilum.evaluation") / "report.css").read_text(encoding="utf-8")
    root = re.search(r":root \{[^}]*\}", css)
    rules = re.findall(r"(?m)^(?:svg|\.(?:frame|curve|band|whisker|mark)) .*$", css)
    return "\n".join([root[0] if root else "", *rules])
