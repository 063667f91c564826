"""The quickstart's verifier: the last integer of the response is the answer.

Small models answer "7 + 5 = 12" where only the number was asked for; the last integer is what they
came to. (Measured: taken at its word, "Reply with only the number." would find SmolLM2-135M right
in 0 of 160 answers, so nothing could be learned from; this way it is right in 13 %.)
"""

import re

from services.reward.verifiers.judgement import UNPARSED, Judgement, Verifier

# ASCII digits only: \d would also take digits of other scripts. In "9-2" the minus is no sign.
_INTEGER = re.compile(r"(?<![0-9])[+-]?[0-9]+")


def make(_parameter: str) -> Verifier:
    return integer


def integer(response: str, answer: str) -> Judgement:
    """Judge a response such as "12", "7 + 5 = 12" or "The answer is 12."."""
    if not _INTEGER.fullmatch(answer.strip()):
        raise ValueError(f"the key {answer[:40]!r} is not an integer")
    found = _INTEGER.findall(response)
    if not found:
        return UNPARSED
    extracted = _canonical(found[-1])
    return Judgement(correct=extracted == _canonical(answer.strip()), extracted=extracted)


def _canonical(text: str) -> str:
    """Compare digits, not ints: int() refuses more than 4,300 of them."""
    digits = text.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits
