"""The quickstart's verifier: the whole response must be one integer.

"Reply with only the number." is taken at its word: after stripping white space and one optional
full stop nothing but the integer may be left. Fishing the last number out of a sentence would
call "7 + 5 = 12" right, and the first policy would have little left to learn.
"""

import re

from services.reward.verifiers.judgement import UNPARSED, Judgement, Verifier

# ASCII digits only: \d would also take digits of other scripts.
_INTEGER = re.compile(r"([+-]?)([0-9]+)")


def make(_parameter: str) -> Verifier:
    return integer


def integer(response: str, answer: str) -> Judgement:
    """Judge a response that should be just an integer, such as "12", "+12" or "-3."."""
    key = _canonical(answer.strip())
    if key is None:
        raise ValueError(f"the key {answer[:40]!r} is not an integer")
    extracted = _canonical(response.strip().removesuffix(".").rstrip())
    if extracted is None:
        return UNPARSED
    return Judgement(correct=extracted == key, extracted=extracted)


def _canonical(text: str) -> str | None:
    """Compare digits, not ints: int() refuses more than 4,300 of them."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].lstrip("0") or "0"
    return f"-{digits}" if match[1] == "-" and digits != "0" else digits
