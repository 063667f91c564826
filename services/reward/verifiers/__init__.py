"""The verifiers by name. A new one is a file beside this one, with a `make`, and its form's line in
`dapod.verifier_name`, which the config's rules know too.

A name is a file's, with a parameter after a colon where a form has one: "integer",
"dapo_math:boxed", "reasoning_gym:chain_sum", "python:my_checks:is_palindrome". docs/verifiers.md
has them all. `load` runs in worker processes only and imports no other verifier's file: verifiers
may be heavy, and may misbehave.
"""

import importlib
from typing import cast

from dapod.verifier_name import VerifierName
from services.reward.verifiers.judgement import Judgement, RefusedVerifier, Verifier

__all__ = ["Judgement", "RefusedVerifier", "Verifier", "load"]


def load(name: str) -> Verifier:
    """The verifier of that name, ready to judge; RefusedVerifier if there is none."""
    try:
        parsed = VerifierName.parse(name)
    except ValueError as error:
        raise RefusedVerifier(str(error)) from error
    try:
        module = importlib.import_module(f"{__name__}.{parsed.file}")
        return cast(Verifier, module.make(parsed.parameter))
    except ModuleNotFoundError as error:
        raise RefusedVerifier(f"{name!r} needs a package that is missing: {error}") from error
