r"""The library Math-Verify: equivalence of expressions, "\boxed{0.5}" for a key of "1/2".

What is judged is the content of the last \boxed{…}; without any, the last expression of the
response's end, as the library finds it ("the answer is …", $…$, a number). Departures from calling
`parse` and `verify` on the whole response:

1. Its own time-outs are off: they are signals, work in a main thread only, and made all rewards 0
   where they did not (verl#5635). The pool's deadline ends what takes too long.
2. Only EXPRESSION_CHARACTERS are looked at: an answer is short, and the library's grammar needs a
   second for a set of 200 numbers, its regular expressions are quadratic on some texts. A last box
   that is longer or never closed is unparsed, not replaced by an expression near it.
3. What it cannot compare rises (outcome `error`) where the library would say "wrong"; what it
   gives up inside a comparison it calls unequal, and so do we.
"""

import logging
from functools import lru_cache
from typing import Any

from math_verify import (  # type: ignore[import-untyped]
    ExprExtractionConfig,
    LatexExtractionConfig,
    parse,
    verify,
)
from sympy import nan, zoo  # type: ignore[import-untyped]

from services.reward.verifiers.box import OPENING, last_box
from services.reward.verifiers.judgement import UNPARSED, Judgement, Verifier

EXPRESSION_CHARACTERS = 1000

_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

_WARM_UP = (
    (r"the answer is $x^2+2x+\frac{1}{2}$", r"\frac{2(x+1)^2-1}{2}"),
    (r"\boxed{2, \sqrt{8}}", r"\{2\sqrt{2}, 2\}"),
    (r"\boxed{(2,1)}", "(1,2)"),
    (r"\boxed{x<3}", "x>3"),
)


def make(_parameter: str) -> Verifier:
    """Judges a little beforehand: what each kind of comparison builds once takes up to 0.5 s, and
    every worker forked from here has it built."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that time-outs are off
    for response, answer in _WARM_UP:
        math_verify(response, answer)
    return math_verify


def math_verify(response: str, answer: str) -> Judgement:
    """Judge a response that says its answer in a box or last."""
    key = _key(answer)
    box = last_box(response, EXPRESSION_CHARACTERS)
    expression = _end(response) if box is None else box
    said = _parsed(expression)
    if not said:
        return UNPARSED
    return Judgement(correct=_equal(key, said), extracted=_written(said, expression))


@lru_cache(maxsize=64)  # a group's rollouts share their key
def _key(answer: str) -> list[Any]:
    """A key without a box or dollars is LaTeX all the same."""
    key = _parsed(last_box(answer, EXPRESSION_CHARACTERS) or f"{OPENING}{answer}}}")
    if not key:
        raise ValueError(f"the key {answer[:40]!r} is no expression")
    return key


def _end(response: str) -> str:
    """The last characters, from a line's start if there is one: a cut inside $…$ would turn
    what is between two formulas into one."""
    if len(response) <= EXPRESSION_CHARACTERS:
        return response
    tail = response[-EXPRESSION_CHARACTERS:]
    _, newline, lines = tail.partition("\n")
    return lines if newline else tail


def _parsed(text: str) -> list[Any]:
    """The expression, if it could be read, and its text; empty if there is none."""
    found: list[Any] = parse(text, _EXTRACTION, parsing_timeout=None, raise_on_error=True)
    return found


def _equal(key: list[Any], said: list[Any]) -> bool:
    if said[0] in (zoo, nan):  # 1/0 is an answer, and never the right one; comparing it raises
        return False
    return bool(verify(key, said, timeout_seconds=None, raise_on_error=True))


def _written(said: list[Any], expression: str) -> str:
    """The text the library has read; never `str` of the expression, which may have a million
    digits."""
    return next((part for part in said if isinstance(part, str)), expression)
