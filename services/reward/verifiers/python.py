"""The user's own verifier: `python:module:function`.

The module is imported like any other, so it is found in an installed package, on PYTHONPATH or in
the directory the service runs in. The function gets (response, answer) and returns True, False,
None (no answer could be read) or a Judgement. It may be as heavy as it likes: it lives in worker
processes only, and they are killed at the deadline.
"""

import importlib
from collections.abc import Callable

from services.reward.verifiers.judgement import UNPARSED, Judgement, RefusedVerifier, Verifier

OwnVerifier = Callable[[str, str], bool | Judgement | None]


def make(parameter: str) -> Verifier:
    function = _function(parameter)

    def judge(response: str, answer: str) -> Judgement:
        return _judgement(function(response, answer), response)

    return judge


def _function(parameter: str) -> OwnVerifier:
    name = f"'python:{parameter}'"
    module, _, attribute = parameter.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        raise RefusedVerifier(
            f"{name}: importing {module!r} failed with {type(error).__name__}: {error}; "
            "it must be installed, on PYTHONPATH or in the service's working directory"
        ) from error
    if not callable(function):
        raise RefusedVerifier(f"{name}: module {module!r} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def _judgement(said: bool | Judgement | None, response: str) -> Judgement:
    if said is None:
        return UNPARSED
    if isinstance(said, Judgement):
        return said
    if isinstance(said, bool):
        return Judgement(correct=said, extracted=response.strip())
    # A score between 0 and 1 is no judgement: DAPO's reward is right or wrong (eq. 7).
    raise TypeError(f"returned {said!r:.80}, not True, False, None or a Judgement")
