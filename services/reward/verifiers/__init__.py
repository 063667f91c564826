"""The verifiers by name. A new one is a file beside this one, with a `make`, and a line in _FORMS.

A name is a file's, with a parameter after a colon where a form has one: "integer",
"dapo_math:boxed", "reasoning_gym:chain_sum", "python:my_checks:is_palindrome". docs/verifiers.md
has them all. `load` runs in worker processes only and imports no other verifier's file: verifiers
may be heavy, and may misbehave.
"""

import importlib
from typing import cast

from services.reward.verifiers.judgement import Judgement, RefusedVerifier, Verifier

__all__ = ["KNOWN", "Judgement", "RefusedVerifier", "Verifier", "load"]

_FORMS = {
    "dapo_math": ("dapo_math", "dapo_math:boxed"),
    "gsm8k": ("gsm8k",),
    "integer": ("integer",),
    "math_verify": ("math_verify",),
    "python": ("python:<module>:<function>",),
    "reasoning_gym": ("reasoning_gym:<dataset>",),
}

KNOWN = ", ".join(form for forms in _FORMS.values() for form in forms)


def load(name: str) -> Verifier:
    """The verifier of that name, ready to judge; RefusedVerifier if there is none."""
    file, _, parameter = name.partition(":")
    if not any(_fits(name, form) for form in _FORMS.get(file, ())):
        raise RefusedVerifier(f"{name!r} is not a verifier; use one of {KNOWN}")
    try:
        return cast(Verifier, importlib.import_module(f"{__name__}.{file}").make(parameter))
    except ModuleNotFoundError as error:
        raise RefusedVerifier(f"{name!r} needs a package that is missing: {error}") from error


def _fits(name: str, form: str) -> bool:
    """What stands for a hole is the file's to judge."""
    before, hole, _ = form.partition("<")
    return name.startswith(before) if hole else name == form
