r"""The last \boxed{…} of a text, as models write their answers."""

import re

OPENING = "\\boxed{"
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace opens nothing


def last_box(text: str, most: int) -> str | None:
    r"""The last \boxed{…} whole, braces balanced. None if there is none; empty if it has no end
    within `most` characters."""
    start = text.rfind(OPENING)
    if start < 0:
        return None
    depth = 0
    for brace in _BRACES.finditer(text, start + len(OPENING) - 1, start + most):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.end()]
    return ""
