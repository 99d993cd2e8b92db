"""Building what a recipe names, so that a setting a constructor cannot use is told with the recipe's line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe
from hilum.core.registry import registry
from hilum.core.schema import TOP

# What Python and torch raise for a value of the wrong kind or size; anything else is a fault of the component.
MISUSE = (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError)


@contextmanager
def told_by(recipe: Recipe, section: str, what: str) -> Iterator[None]:
    """Give faults inside the recipe's file and line: of the key they name, else of ``section``."""
    try:
        yield
    except HilumError as error:
        if not error.where.startswith((recipe.origin, "--set ")):
            named = error.where.partition(".")[0] in TOP
            if named or not error.where or "recipe" in error.where:
                error.where = recipe.where(error.where if named else section)
        raise
    except MISUSE as error:
        told = (str(error).strip().splitlines() or [""])[0]
        raise HilumError(
            f"{what} cannot be built with these settings: {type(error).__name__}: {told}",
            where=recipe.where(section),
            fix="check the values of its options, or leave them out for the defaults",
        ) from error


def build_component(kind: str, recipe: Recipe, section: str, name: str, *args: Any, **options: Any) -> Any:
    """What is registered as ``kind`` ``name``, built with ``args`` and the ``options`` of the recipe's ``section``."""
    with told_by(recipe, section, f"the {kind} {name!r}"):
        return registry.build(kind, name, *args, **options)
