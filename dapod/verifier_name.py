"""The name of a verifier: the one table of them, for the config's rules and the reward service.

Whether a name is written rightly can be said anywhere, before anything starts; whether it loads
(the data set of reasoning-gym, the user's own module) only the reward service's workers know. The
standard library is all it needs: those workers import it.

Example: `VerifierName.parse("python:my_checks:is_palindrome").file == "python"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

FORMS = (
    "dapo_math",
    "dapo_math:boxed",
    "gsm8k",
    "integer",
    "math_verify",
    "python:<module>:<function>",
    "reasoning_gym:<dataset>",
)
"""What stands before the first colon is a file of `services.reward.verifiers`."""

KNOWN = ", ".join(FORMS)


@dataclass(frozen=True, kw_only=True)
class VerifierName:
    """A name of one of the forms."""

    file: str
    parameter: str
    """What stands behind the file's colon; empty without one."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises `ValueError`, the name first, for one of no form."""
        if not any(pattern.fullmatch(name) for pattern in _PATTERNS):
            raise ValueError(f"{name!r} is not a verifier; use one of {KNOWN}")
        file, _, parameter = name.partition(":")
        return cls(file=file, parameter=parameter)


_PATTERNS = [re.compile(re.sub(r"<\w+>", "[^:]+", form)) for form in FORMS]
