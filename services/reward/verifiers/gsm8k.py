"""GSM8K's verifier: the key's number after "####" against the last number in the response.

Numbers are compared by value and as text: "1,000", "1000" and "1000.00" are the same, and no
number of digits is too long. A currency sign or a unit beside the number does not matter. A minus
counts only where no digit, letter or bracket stands before it: "9-5" ends in 5.
"""

import re

from services.reward.verifiers.judgement import UNPARSED, Judgement, Verifier

# ASCII digits only: \d would also take digits of other scripts.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])([-\u2212])\s?[$€£]?)?"  # a hyphen or a MINUS SIGN
    r"([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.([0-9]+))?"
)
_BEFORE = 4  # what stands before its digits: one that is no part of it, the sign, a space, "$"


def make(_parameter: str) -> Verifier:
    return gsm8k


def gsm8k(response: str, answer: str) -> Judgement:
    """Judge a response whose last number is its answer; a key without "####" is the number."""
    key = _last_number(answer.rpartition("####")[2])
    if key is None:
        raise ValueError(f"the key {answer[-40:]!r} has no number")
    extracted = _last_number(response)
    if extracted is None:
        return UNPARSED
    return Judgement(correct=extracted == key, extracted=extracted)


def _last_number(text: str) -> str | None:
    """Looked for from the end: megabytes without a digit cost nothing."""
    last = max(map(text.rfind, "0123456789"))
    if last < 0:
        return None
    start = last
    while start > 0 and text[start - 1] in "0123456789,.":
        start -= 1
    *_, match = _NUMBER.finditer(text, max(0, start - _BEFORE), last + 1)
    return _canonical(*match.groups())


def _canonical(sign: str | None, whole: str, decimals: str | None) -> str:
    """Digits, not floats: nothing is rounded and nothing overflows."""
    digits = whole.replace(",", "").lstrip("0") or "0"
    fraction = (decimals or "").rstrip("0")
    number = f"{digits}.{fraction}" if fraction else digits
    return f"-{number}" if sign and number != "0" else number
