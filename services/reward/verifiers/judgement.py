"""What a verifier is: a pure function of two texts, and what it answers.

A verifier knows nothing about rewards, deadlines or processes. It may raise or hang on hostile
text; the pool around it turns that into an outcome.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verifier's answer about one response.

    Example: Judgement(correct=False, extracted="41")
    """

    correct: bool | None
    """None: no answer could be read from the response (outcome `unparsed`)."""

    extracted: str | None
    """The answer as it was compared, for people to read; None with `correct=None`."""


UNPARSED = Judgement(correct=None, extracted=None)

Verifier = Callable[[str, str], Judgement]
"""(response, answer) -> Judgement; `answer` is the key of the data set."""


class RefusedVerifier(ValueError):
    """No verifier can be made from this name; the message says what to change, name first."""
