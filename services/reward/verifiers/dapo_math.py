r"""DAPO-Math's rule-based verifier (§2.4): the last "Answer: …" line, normalised, compared as text.

What it does is the paper's published evaluation (BytedTsinghua-SIA/DAPO, eval/math_dapo.py), which
normalises as Minerva does (Lewkowycz et al. 2022, arXiv 2206.14858, appendix D.1); the two lists of
expressions below are theirs, the code is ours. Departures:

1. There is no \boxed{} fallback (verl added one later; it changes the reward).
2. Everything is linear in the text: wrappers are removed with `str.find`, not with lazy regular
   expressions, which are quadratic on text without the closing brace (verl#6673).
3. Without an "Answer:" line the response is unparsed, not the answer "[INVALID]"; a key that
   normalises to nothing is an error, or an empty answer would be right.

Quirks are kept, because a reward that differs is another task: "42." and "50%" are not "42" and
"50", case counts, and a word such as "ways" vanishes wherever it stands.
"""

import re

from services.reward.verifiers.judgement import UNPARSED, Judgement, RefusedVerifier, Verifier

TAIL_CHARACTERS = 300
"""Only the end of a response can hold its answer."""

_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")

# In this order: each is replaced everywhere before the next is looked for.
_SUBSTITUTIONS = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)  # fmt: skip

# "childrentickets" and "sue" are in the source; spaces are gone by the time these are looked for.
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots",
    "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds",
    "meters", "meals", "edges", "students", "childrentickets", "multiples", "\\text{s}",
    "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}",
    "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip

_SHORT_FRACTION = re.compile(r"frac([^{])(.)")  # \frac12 means \frac{1}{2}
_SHORT_ROOT = re.compile(r"sqrt([^{])")  # \sqrt2 means \sqrt{2}


def make(parameter: str) -> Verifier:
    if parameter:  # never judged by other rules than the name says
        raise RefusedVerifier(f"'dapo_math:{parameter}' is not here yet; use dapo_math")
    return dapo_math


def dapo_math(response: str, answer: str) -> Judgement:
    """Judge a response that should end in a line "Answer: $Answer"."""
    key = normalise(answer)
    if not key:
        raise ValueError(f"the key {answer[:40]!r} has nothing to compare with")
    lines = _ANSWER.findall(response[-TAIL_CHARACTERS:])
    if not lines:
        return UNPARSED
    extracted = normalise(lines[-1])
    return Judgement(correct=extracted == key, extracted=extracted)


def normalise(answer: str) -> str:
    """One way of writing each answer, so that answers can be compared as strings."""
    text = answer.rpartition("=")[2]
    for written, instead in _SUBSTITUTIONS:
        text = text.replace(written, instead)
    for expression in _REMOVED:
        text = text.replace(expression, "")
    text = _unwrapped(_in_first_dollars(text))
    text = _SHORT_FRACTION.sub(r"frac{\1}{\2}", text)
    text = _SHORT_ROOT.sub(r"sqrt{\1}", text)
    return _without_thousands(text.replace("$", "")).strip()


def _in_first_dollars(text: str) -> str:
    """Only what stands between the first two dollars, if there are two; they go later."""
    parts = text.split("$", 2)
    return f"${parts[1]}$" if len(parts) == 3 else text


def _unwrapped(text: str) -> str:
    for command in ("\\text{", "\\textbf{", "\\overline{"):
        text = _without_wrapper(text, command)
    start, end = text.find("\\boxed{"), text.rfind("}")
    if not 0 <= start < end:
        return text
    return text[:start] + text[start + len("\\boxed{") : end] + text[end + 1 :]


def _without_wrapper(text: str, command: str) -> str:
    r"""Replace each `\command{…}` by what is in it, up to the first closing brace."""
    kept: list[str] = []
    at = 0
    while (start := text.find(command, at)) >= 0:
        inside = start + len(command)
        if (end := text.find("}", inside)) < 0:
            break
        kept += text[at:start], text[inside:end]
        at = end + 1
    return "".join(kept) + text[at:]


def _without_thousands(text: str) -> str:
    digits = text.replace(",", "")
    return digits if digits.isdigit() else text
