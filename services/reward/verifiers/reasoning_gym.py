"""The library reasoning-gym: `reasoning_gym:<dataset>`, its scorer for that data set.

The answer column holds the entry that the data set generated (question, answer, metadata) as JSON.
The answer is what stands in the last <answer>…</answer>, the library's own convention, or, without
such a tag, the whole response. Only a full score of 1 is correct: DAPO's reward is right or wrong.
An answer that a scorer raises about is wrong: some parse it with no thought of garbage.

No code arrives as data (invariant 10), and the library is careless there: scorers `eval` the
response (n_queens, spiral_matrix, …) or hand it to sympy's `parse_expr`, which is `eval` too
(countdown, puzzle24, …). Both are replaced by ones that take plain arithmetic and literals only.

A data set whose scorer calls a package that is not installed is refused (`dapod.reasoning_gym`).
"""

import ast
import builtins
import importlib
import json
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any

import sympy  # type: ignore[import-untyped]

from dapod.reasoning_gym import import_library
from services.reward.verifiers.judgement import UNPARSED, Judgement, RefusedVerifier, Verifier

Scorer = Callable[[str, dict[str, Any]], float]

NOT_AS_JSON = ("rearc",)
"""Their scorers compare tuples, which JSON makes lists: even the right answer would be wrong."""

# As complex_arithmetic reads it: float() with an "i" or "j" perhaps, and spaces do not count.
_NOT_A_NUMBER = re.compile(r"(?<![A-Za-z])nan[ij]?(?![A-Za-z])", re.IGNORECASE)

_OPEN, _CLOSE = "<answer>", "</answer>"

# Numbers, single letters, a few functions and operators. No quotes, no brackets but round ones, no
# underscore and no dot before a letter: nothing that reaches an attribute, an item or a built-in.
# Possessive, or a long number would be tried in all ways to cut it.
_PLAIN = re.compile(
    r"(?:0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
    r"|(?:a?(?:sin|cos|tan)h?|a?cot|sec|csc|exp|log|ln|sqrt|Abs|pi|[A-Za-z])(?![A-Za-z0-9])"
    r"|[-+*/^%~&|<>(),\s])*+"
)


def make(parameter: str) -> Verifier:
    score = _scorer(parameter)

    def judge(response: str, answer: str) -> Judgement:
        extracted = _answer(response)
        if not extracted:
            return UNPARSED
        return Judgement(correct=_full(score, extracted, answer), extracted=extracted)

    return judge


def _full(score: Scorer, extracted: str, answer: str) -> bool:
    """Whether the score is 1. What the scorer raises about an answer is not the verifier's failure.

    Unless it raises about the entry's own answer too: then the key is at fault.
    """
    entry = _entry(answer)
    try:
        return score(extracted, entry) == 1 and not _says_nan(extracted, answer)
    except MemoryError:
        raise
    except Exception:  # prime_factorization's int("banana"): whatever its author did not expect
        entry = _entry(answer)  # a scorer may have left its mark on the other
        score(entry["answer"], entry)
        return False


def _says_nan(extracted: str, answer: str) -> bool:
    """complex_arithmetic scores min(1, nan), which is 1 in Python: "nan" would always be right."""
    said, key = (_NOT_A_NUMBER.search(text.replace(" ", "")) for text in (extracted, answer))
    return said is not None and key is None


def _scorer(dataset: str) -> Scorer:
    _import_guarded()
    factory = importlib.import_module("reasoning_gym.factory")
    name = f"'reasoning_gym:{dataset}'"
    if dataset not in factory.DATASETS:
        near = (
            " or ".join(get_close_matches(dataset, factory.DATASETS)) or "one that its README lists"
        )
        raise RefusedVerifier(f"{name}: reasoning-gym has no data set {dataset!r}; use {near}")
    if dataset in NOT_AS_JSON:
        raise RefusedVerifier(f"{name} cannot be used: its entries do not survive JSON")
    try:
        scorer: Scorer = factory.get_score_answer_fn(dataset)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # "composite" asks for a configuration, say
        raise RefusedVerifier(f"{name} cannot be used by itself: {error}") from error
    return scorer


def _answer(response: str) -> str:
    return response.rpartition(_OPEN)[2].partition(_CLOSE)[0].strip()


def _entry(answer: str) -> dict[str, Any]:
    entry = json.loads(answer)
    if not isinstance(entry, dict) or not {"answer", "metadata"} <= entry.keys():
        raise ValueError("the key is no reasoning-gym entry with `answer` and `metadata`, as JSON")
    return entry


@cache
def _import_guarded() -> None:
    import_library()
    evaluate = _plain_or(ast.literal_eval, builtins.eval)  # number_sorting has lists in its keys
    parse = _plain_or(_refuse, sympy.parse_expr)
    for module in [m for name, m in sys.modules.items() if name.startswith("reasoning_gym.")]:
        vars(module)["eval"] = evaluate
        if vars(module).get("parse_expr") is sympy.parse_expr:
            vars(module)["parse_expr"] = parse
    sympy.parse_expr = parse  # the others call it as `sympy.parse_expr`


def _plain_or(otherwise: Callable[[str], Any], evaluate: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(text: str, *arguments: Any, **options: Any) -> Any:
        if _PLAIN.fullmatch(text):
            return evaluate(text, *arguments, **options)
        return otherwise(text)

    return guarded


def _refuse(text: str) -> Any:
    raise ValueError(f"not plain arithmetic: {text[:40]!r}")
