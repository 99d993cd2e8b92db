"""Every reason code that the sources can write is explained, and nothing is explained that is never written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hilum.core.errors import HilumError
from hilum.data.reasons import COPIES, FILES, SAMPLES, VOLUMES, meaning, reason_of

SOURCES = sorted(Path(__file__).parents[2].glob("packages/*/src/hilum/**/*.py"))
STATUSES = ("quarantined", "skipped", "failed")
EVERY = {**FILES, **VOLUMES, **SAMPLES, **COPIES}


def text_of(node: ast.AST) -> str | None:
    """The code that a string, or the literal start of an f-string, carries; None where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition(":")[0]
    if isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
        return str(node.values[0].value).partition(":")[0]
    return None


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def written(tree: ast.AST) -> Iterator[str]:
    """Codes that a module writes, wherever in it: as a reason, a problem, a note."""
    nodes = list(ast.walk(tree))
    tellers = [n for n in nodes if isinstance(n, ast.FunctionDef) and "problem" in n.name]
    for yielded in (n for f in tellers for n in ast.walk(f) if isinstance(n, ast.Yield) and n.value is not None):
        if (code := text_of(yielded.value)) is not None:
            yield code
    for node in nodes:
        found: list[ast.AST] = []
        if isinstance(node, ast.Call):
            name, values = name_of(node.func), node.args
            if name in ("Rejected", "note", "Trouble") and values:
                found = [values[0]]
            elif name == "_note" and len(values) > 2:
                found = [values[2]]
            elif name == "IndexRow" and len(values) > 1:
                found = [values[1]]
            elif name in ("append", "add") and isinstance(node.func, ast.Attribute) and values:
                found = [values[0]] if "problem" in name_of(node.func.value) else []
        elif isinstance(node, ast.List) and any(
            "problem" in name_of(e.value) for e in node.elts if isinstance(e, ast.Starred)
        ):
            found = list(node.elts)
        elif (
            isinstance(node, ast.For) and isinstance(node.target, ast.Tuple) and name_of(node.target.elts[0]) == "code"
        ):
            found = [row.elts[0] for row in getattr(node.iter, "elts", ()) if isinstance(row, ast.Tuple)]
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and text_of(node.elts[0]) in STATUSES:
            found = [node.elts[1]]
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any("problem" in name_of(t) for t in targets):
                found = [e for part in ast.walk(node.value) if isinstance(part, ast.List) for e in part.elts]
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and text_of(key) == "problems":
                    found += [e for part in ast.walk(value) if isinstance(part, ast.List) for e in part.elts]
        yield from (code for item in found if (code := text_of(item)))


def test_every_code_in_the_sources_is_explained() -> None:
    assert len(SOURCES) > 100
    codes = {code: path.name for path in SOURCES for code in written(ast.parse(path.read_text(encoding="utf-8")))}
    codes = {code: file for code, file in codes.items() if code not in STATUSES}
    assert {
        "truncated_pixels",
        "uid_conflict",
        "non_image",
        "bad_value",
        "constant_values",
        "cycle",
        "gap",
        "mixed_size",
    } <= codes.keys()
    unexplained = {code: file for code, file in codes.items() if code.rstrip("_") not in EVERY}
    assert not unexplained


def test_the_codes_of_the_formats_are_all_there() -> None:
    formats = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    listed = formats.partition("Quarantine reasons at least: `")[2].partition("`")[0].split()
    assert len(listed) >= 16 and set(listed) <= FILES.keys()


def test_meanings_are_sentences_and_details_are_cut() -> None:
    for code, reason in EVERY.items():
        assert reason.means and reason.fix and not reason.means.endswith("."), code
    assert reason_of("bad_value:PixelSpacing") is FILES["bad_value"]
    assert reason_of("non_image:rtstruct") is FILES["non_image"]
    with pytest.raises(HilumError, match="no reason code 'truncated_pixel'") as caught:
        reason_of("truncated_pixel")
    assert "truncated_pixels" in caught.value.fix
    assert "does not explain" in meaning("x:y").means


def test_the_documentation_lists_every_code_as_the_program_explains_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    missing = [
        line for code, reason in EVERY.items() if (line := f"| `{code}` | {reason.means} | {reason.fix} |") not in page
    ]
    assert not missing


def test_codes_that_nobody_knows_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of made-up codes is no reason to compare each with all that exist."""
    from hilum.data import reasons

    monkeypatch.setattr(reasons, "nearest", lambda *_: pytest.fail("compared"))
    assert {meaning(f"made_up_{n}") for n in range(3)} == {meaning("x")}


def test_near_names_move_no_terminal() -> None:
    import pyarrow as pa

    from hilum.verbs.why import _near

    told = _near(pa.array(["a\x1b[31m\nb.dcm", "other.dcm"]), "a[31mb.dcm")
    assert "\\x1b[31m\\x0ab.dcm" in told and told.isprintable()


def test_a_page_of_made_up_codes_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from hilum.verbs import archive_page

    numbers = {
        "faults": {("quarantined", f"made_up_{n}"): 1 for n in range(20_000)} | {("indexed", None): 5},
        "problems": {f"made_up_{n}": 1 for n in range(20_000)},
        "messages": {},
    }
    archive = cast(Any, SimpleNamespace(numbers=numbers))
    assert len(archive_page._faults(archive)) + len(archive_page._notes(archive)) < 200_000
