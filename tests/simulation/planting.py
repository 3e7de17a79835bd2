"""How a mistake is planted.

A mutant is a function that takes `patch(owner, name, replacement)` and plants itself; its docstring says what goes wrong. `MUTANTS` lists those
of all modules that were imported: take it from `mutants.py`, which imports them.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeAlias

Patch: TypeAlias = Callable[[Any, str, Any], object]
Mutant: TypeAlias = Callable[[Patch], None]

MUTANTS: list[Mutant] = []


def mutant(plant: Mutant) -> Mutant:
    """List a mutant."""
    MUTANTS.append(plant)
    return plant


def rewrite(patch: Patch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a piece of a function's source."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has changed: {old!r} is not in it once"
    scope: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + source.replace(old, new), function.__globals__, scope)
    patch(owner, name, scope[name])
