r"""Responses made to hang, exhaust or confuse a verifier; a degenerate policy does write some.

Each is (what it is, verifier, response, answer). The answer is a plain key unless the trap needs
its own. Nothing here is right, so `correct` is the one outcome that none may have.
"""

import json

MILLION = 1_000_000


def boxed(text):
    return f"So the answer is \\boxed{{{text}}}."


def nested(opening, inner, closing, depth):
    return opening * depth + inner + closing * depth


EXPRESSIONS = {
    # Numbers that do not fit into a computer.
    "tower of powers": "2^{10^{10}}",
    "tower of ones and twos": "2^{2^{2^{2^{2^{2}}}}}",
    "huge power plus one": "3^{10^8}+1",
    "huge power of a fraction": "\\left(\\frac{3}{7}\\right)^{10^8}",
    "root of a huge power": "\\sqrt{2^{10^9}+1}",
    "huge factorial": "(10^7)!",
    "factorials divided": "\\frac{(10^6)!}{(10^6-1)!}",
    "binomial": "\\binom{10^7}{5\\cdot 10^6}",
    "sum of binomials": "\\sum_{k=0}^{100000}\\binom{100000}{k}",
    "long sum": "\\sum_{k=1}^{10^9}\\frac{1}{k^2+k+1}",
    "huge modulus": "7^{10^{12}} \\mod 13",
    "digits of a float": "1.5^{10^8}",
    # Expressions that take long to compare, integrate or expand.
    "integral": "\\int \\frac{\\sin(x^2)\\log(x+1)}{\\sqrt{x^5+x+1}} dx",
    "limit": "\\lim_{x\\to 0}\\frac{\\sin(\\tan x)-\\tan(\\sin x)}{x^{70}}",
    "high derivative": "\\frac{d^{200}}{dx^{200}}\\sin(x^{20})e^{x^{3}}",
    "power of a sum": "(a+b+c+d+e+f+g+h)^{60}-(h+g+f+e+d+c+b+a)^{60}+1",
    "quotient of polynomials": "\\frac{(x+y+z)^{40}-1}{(x-y-z)^{37}+1}",
    "nested radicals": "\\sqrt{2+\\sqrt{3+\\sqrt{5+\\sqrt{7+\\sqrt{11+\\sqrt{13}}}}}}",
    "sum of roots": "+".join(f"\\sqrt[{n}]{{{n}}}" for n in range(2, 40)),
    "trigonometric sum": "+".join(f"\\sin({n}x)\\cos({n}y)" for n in range(1, 40)),
    "equation of high degree": "x^{97}+3x^{41}-7x+1=0",
    "inequality": "|x^5-3x+1|<\\sqrt{x^4+1}",
    "matrix power": "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{10^7}",
    "large matrix": "\\begin{pmatrix}" + "\\\\".join(["1&x&y&z"] * 40) + "\\end{pmatrix}",
    "division by zero": "\\frac{1}{0}",
    "zero over zero": "\\frac{0}{0}",
    "infinity minus infinity": "\\infty-\\infty",
    # Text that takes long to parse.
    "set of 5,000": "\\{" + ",".join(map(str, range(5000))) + "\\}",
    "set of 230": "\\{" + ",".join(map(str, range(230))) + "\\}",
    "parentheses": nested("(", "5", ")", 400),
    "parentheses without end": "(" * 900,
    "braces": nested("{", "5", "}", 400),
    "brackets": nested("[", "5", "]", 400),
    "fractions": nested("\\frac{1}{1+", "x", "}", 60),
    "roots": nested("\\sqrt{", "2", "}", 130),
    "boxes in boxes": nested("\\boxed{", "5", "}", 120),
    "exponents": nested("x^{", "2", "}", 200),
    "equals signs": "x=" * 480 + "41",
    "one long sum": "1+" * 490 + "1",
    "letters": "abcdefgh" * 120,
    "a million digits": "7" * MILLION,
    "a million digits after the point": "0." + "3" * MILLION,
    "commands that are none": "\\foo\\bar\\baz" * 70,
    "a definition of itself": "\\def\\x{\\x\\x}\\x",
    "null bytes": "5\0" * 400,
    "digits of other scripts": "\u0664\u0662\u0967\u09ea\uff14",
    "direction marks": "\u202e24\u202c",
    "combining marks": "4" + "\u0301" * 900,
}

TEXTS = {
    "megabytes of dollars": "$" * (2 * MILLION),
    "dollars with digits": "$1" * 200_000,
    "dollars and spaces": "$ " * 200_000,
    "megabytes of boxes": "\\boxed{" * 200_000,
    "boxes that close": "\\boxed{4}" * 200_000 + "\\boxed{41}",
    "megabytes of braces": "{" * MILLION + "}" * MILLION,
    "box with megabytes of braces": "\\boxed{" + "{" * MILLION,
    "backslashes": "\\" * 200_000,
    "megabytes of digits": "1" * (2 * MILLION),
    "digits and commas": "1,234," * 100_000,
    "digits and points": "1." * 200_000,
    "minus signs": "-" * MILLION,
    "final answer is": "final answer is " * 100_000,
    "answer: without one": "Answer:" * 100_000,
    "answer: and spaces": "Answer:" + " " * MILLION,
    "tail of operators": "1" + "+-*/^" * 190,
    "expression that does not end": "the answer is 1" + "(1" * 490,
    "brackets as display": "\\[" * 200_000,
    "new lines": "\n" * MILLION,
    "white space of all kinds": " \t\r\n\u00a0\u2003\u3000" * 50_000,
    "a lone surrogate": "\ud800" * 1000,
    "emoji": "\U0001f600" * 100_000,
    "null bytes": "\0" * 200_000,
    "percent signs": "$50\\%" * 100_000,
    "hashes": "#### " * 100_000,
}

_COUNTDOWN = json.dumps(
    {"question": "", "answer": "", "metadata": {"numbers": [9, 9, 9], "target": 41}}
)

CODE = {
    "code in brackets": "__import__('os').abort()",
    "code without names": "().__class__.__base__.__subclasses__()",
    "a tower in Python": "9**9**9**9",
    "a shift": "1<<(9**9)",
    "a long product": "9*" * 100_000 + "9",
    "digits for a regular expression": "1" * 200_000 + "'",
    "parentheses in Python": nested("(", "9", ")", 3000),
}

CORPUS = [
    *((name, "math_verify", boxed(text), "42") for name, text in EXPRESSIONS.items()),
    *(
        (f"{name} for {verifier}", verifier, text, "42")
        for name, text in TEXTS.items()
        for verifier in ("math_verify", "gsm8k")
    ),
    *((name, "reasoning_gym:countdown", text, _COUNTDOWN) for name, text in CODE.items()),
]
