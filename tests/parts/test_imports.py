"""The parts stand alone: torch, numpy, the standard library, and the contracts below them."""

import ast
import sys
from pathlib import Path

import pytest

import hilum.parts

FOLDER = Path(next(iter(hilum.parts.__path__)))
ALLOWED = {"torch", "numpy", "hilum.core.types", "hilum.core.errors"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_imports_nothing_above_or_beside(path):
    tree = ast.parse(path.read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    for name in names:
        root = name.split(".")[0]
        assert name in ALLOWED or root in ALLOWED | sys.stdlib_module_names or name.startswith("hilum.parts."), name
    assert ast.get_docstring(tree)
