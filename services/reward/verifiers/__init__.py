"""The verifiers by name. A new one is a file beside this one and a line in VERIFIERS.

Imported in worker processes only: verifiers may be heavy, and may misbehave.
"""

from services.reward.verifiers.dapo_math import dapo_math
from services.reward.verifiers.integer import integer
from services.reward.verifiers.judgement import Judgement, Verifier

__all__ = ["VERIFIERS", "Judgement", "Verifier"]

VERIFIERS: dict[str, Verifier] = {
    "dapo_math": dapo_math,
    "integer": integer,
}
