"""The verifiers as pure functions: hand-worked answers, then arbitrary text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reward.verifiers import Judgement, RefusedVerifier, load
from services.reward.verifiers.dapo_math import (
    TAIL_CHARACTERS,
    dapo_math,
    dapo_math_boxed,
    normalise,
)
from services.reward.verifiers.gsm8k import gsm8k
from services.reward.verifiers.integer import integer

UNPARSED = Judgement(correct=None, extracted=None)


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        ("12", "12", True),
        (" 12.\n", "12", True),
        ("+12", "12", True),
        ("012", "12", True),
        ("-3", "-3", True),
        ("-0", "0", True),
        ("7 + 5 = 12", "12", True),
        ("9-2", "2", True),  # a minus between digits is no sign
        ("9 - 2 = -7", "-7", True),
        ("The answer is **12**, not 13", "13", True),
        ("12\n13", "12", False),
        ("12 + 0 =", "12", False),
        ("3", "-3", False),
        ("9" * 5000, "9" * 5000, True),  # more digits than int() takes
        ("9" * 5000, "9" * 4999, False),
    ],
)
def test_the_last_integer_of_the_response_is_compared_by_value(response, answer, correct):
    assert integer(response, answer).correct is correct


@pytest.mark.parametrize(
    "response",
    ["", " ", ".", "-", "twelve", "\u0661\u0662", "\uff11\uff12", "\u00b2"],  # other scripts
)
def test_a_response_without_an_integer_is_unparsed(response):
    assert integer(response, "12") == UNPARSED


@pytest.mark.parametrize("key", ["", "twelve", "1/2"])
def test_a_key_that_is_no_integer_is_the_verifiers_error(key):
    with pytest.raises(ValueError, match="is not an integer"):
        integer("12", key)


# Each worked by hand from the published rules.
@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("34", "34"),
        (" 34 ", "34"),
        ("$34$", "34"),
        ("\\$34", "34"),
        ("$34.$", "34"),
        ("34.", "34."),  # only ".$" loses its full stop
        ("the sum is $5$ or $6$", "5"),
        ("x = 7", "7"),
        ("a = b = 7", "7"),
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("1,\\!234", "1234"),
        ("(1,2)", "(1,2)"),
        ("x,1", "x,1"),
        ("-1,234", "-1,234"),  # "-1234" is not all digits
        ("\\frac12", "\\frac{1}{2}"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\frac123", "\\frac{1}{2}3"),
        ("\\dfrac{1}{2}", "\\dfrac{1}{2}"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("\\sqrt{2}", "\\sqrt{2}"),
        ("\\sqrt23", "\\sqrt{2}3"),
        ("\\boxed{34}", "34"),
        ("$\\boxed{34}$", "34"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\text{odd}", "odd"),
        ("\\textbf{odd}", "odd"),
        ("\\overline{AB}", "AB"),
        ("\\text{odd", "\\text{odd"),
        ("\\boxed{34", "\\boxed{34"),
        ("\\mbox{odd}", "odd"),
        ("5\\text{ and }6", "56"),
        ("5,\\text{ and }6", "56"),
        ("12 cm", "12"),
        ("12\\text{ cm}", "12"),
        ("12\\text{ m}", "12"),
        ("12 cm^2", "12^2"),
        ("12 square units", "12"),
        ("5 ways", "5"),
        ("5 hours", "5"),
        ("12 dollars", "12"),
        ("12 ft", "12ft"),  # DAPO's list dropped Minerva's "ft"
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("90 degrees", "90"),
        ("50%", "50%"),
        ("50\\%", "50\\%"),
        ("a dog", "dog"),
        ("an owl", "owl"),
        ("5\\mathrm{th}", "5"),
        ('"5"', "5"),
        ("X", "X"),
        ("", ""),
        ("units", ""),
    ],
)
def test_answers_are_normalised_as_published(written, normal):
    assert normalise(written) == normal


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("Answer: 34", True),
        ("Answer: $34$", True),
        ("Answer: $34", True),
        ("ANSWER:34", True),
        ("answer : 34", True),
        ("Final Answer: 34", True),
        ("Answer:\n34", True),
        ("Answer: \\boxed{34}", True),
        ("Answer: 35\nno, wait\nAnswer: 34", True),
        ("Answer: 34\nno, wait\nAnswer: 35", False),
        ("Answer: 34\nDone.", True),
        ("Answer: 34 because I say so", False),
        ("Answer: 34.", False),
        ("Answer: 34%", False),
        ("Answer: $Answer: 34", False),
        ("Answer: 34" + " " * (TAIL_CHARACTERS - len("Answer: 34")), True),
    ],
)
def test_the_last_answer_line_counts(response, correct):
    assert dapo_math(response, "34").correct is correct


@pytest.mark.parametrize(
    "response",
    [
        *("", "34", "The answer is 34", "\\boxed{34}", "Answer 34", "Answer:", "Answer:\n\n"),
        "Answer: 34" + "\n" + "x" * TAIL_CHARACTERS,
        "Answer: 34" + " " * (TAIL_CHARACTERS - len("Answer: 34") + 1),
    ],
)
def test_without_an_answer_line_near_the_end_nothing_is_parsed(response):
    assert dapo_math(response, "34") == UNPARSED


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        ("Answer: 34", "34", True),
        ("\\boxed{34}", "34", True),
        ("so it is $\\boxed{34}$.", "34", True),
        ("\\boxed{\\frac{1}{2}}", "\\frac12", True),
        ("\\boxed{\\text{odd}}", "odd", True),
        ("\\boxed{\\boxed{34}}", "34", True),
        ("\\boxed{\\{34\\}}", "\\{34\\}", True),
        ("\\boxed{\\{34}", "\\{34", True),  # an escaped brace opens nothing
        ("\\boxed{35} no, \\boxed{34}", "34", True),
        ("\\boxed{34} no, \\boxed{35}", "34", False),
        ("\\boxed{34}\nAnswer: 35", "34", False),  # a line that says so counts
        ("Answer: 35\n\\boxed{34}", "34", False),
        ("Answer:\n\\boxed{34}", "34", True),
        ("Answer:\n\n" + " " * 300 + "\\boxed{34}", "34", True),
        ("\\boxed{34", "34", None),
        ("\\boxed{34} and \\boxed{3", "34", None),
        ("\\boxed{}", "34", False),
        ("\\boxed 34", "34", None),
        ("34", "34", None),
        ("\\boxed{34}" + "x" * (TAIL_CHARACTERS - len("\\boxed{34}")), "34", True),
        ("\\boxed{34}" + "x" * TAIL_CHARACTERS, "34", None),
    ],
)
def test_dapo_math_boxed_takes_the_last_box_where_no_line_says_answer(response, answer, correct):
    assert load("dapo_math:boxed")(response, answer).correct is correct


@pytest.mark.parametrize(
    "name", ["dapo_math:", "dapo_math:box", "dapo_math:boxed:2", "gsm8k:boxed", "integer:", ""]
)
def test_any_other_parameter_is_refused_with_the_known_forms(name):
    with pytest.raises(RefusedVerifier, match="use one of dapo_math, dapo_math:boxed, gsm8k, int"):
        load(name)


def test_case_counts_in_an_answer():
    assert dapo_math("Answer: x", "X").correct is False


def test_the_key_is_normalised_like_the_answer():
    assert dapo_math("Answer: 1234", "$1,234$").correct is True


@pytest.mark.parametrize("key", ["", "$$", "units"])
def test_a_key_that_normalises_to_nothing_is_the_verifiers_error(key):
    with pytest.raises(ValueError, match="nothing to compare with"):
        dapo_math("Answer: units", key)


def test_an_answer_that_normalises_to_nothing_is_wrong():
    assert dapo_math("Answer: $$", "34") == Judgement(correct=False, extracted="")


@pytest.mark.parametrize(
    ("response", "key", "correct"),
    [
        ("18", "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18", True),
        ("She makes 9 * 2 = $18 every day.", "#### 18", True),
        ("#### 18", "#### 18", True),
        ("18 dollars, not 19", "#### 18", False),
        ("1,000", "#### 1000", True),
        ("1000", "#### 1,000", True),
        ("1,000,000.00", "#### 1000000", True),
        ("18.", "18", True),
        ("18.50", "18.5", True),
        ("018", "18", True),
        ("-3", "#### -3", True),
        ("it fell to -$3", "-3", True),
        ("\u22123", "-3", True),
        ("9-5", "5", True),
        ("9 - 5", "-5", True),  # a minus after a space is a sign
        ("x-5", "5", True),
        ("50%", "50", True),
        ("1,2", "2", True),
        ("12,34", "34", True),
        ("1,2345", "2345", True),
        ("3.14.15", "15", True),
        ("0.0", "-0", True),
        ("5\u0663", "5", True),  # digits of other scripts are no digits
        ("9" * 5000, "#### " + "9" * 5000, True),
        ("none", "#### 18", None),
        ("", "#### 18", None),
    ],
)
def test_the_last_number_is_compared_with_the_number_after_the_hashes(response, key, correct):
    assert gsm8k(response, key).correct is correct


@pytest.mark.parametrize("key", ["", "####", "12 ####", "#### none"])
def test_a_key_without_a_number_is_the_verifiers_error(key):
    with pytest.raises(ValueError, match="has no number"):
        gsm8k("12", key)


PIECES = st.sampled_from(
    [
        *(
            "Answer:",
            "answer :",
            "$",
            "\\$",
            "{",
            "}",
            "=",
            ",",
            ".",
            " ",
            "\n",
            "\r",
            "\0",
            "1",
            "2",
        ),
        *("\\text{", "\\textbf{", "\\overline{", "\\boxed{", "\\frac", "frac", "sqrt", "a ", "an "),
        *("\\text{and}", "units", "^\\circ", "\u0661", "\u2028", "\U0001f600"),
    ]
)
LATEX = st.lists(PIECES | st.text(max_size=3), max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(response=st.text() | LATEX)
def test_no_text_makes_a_verifier_raise_or_contradict_itself(response):
    for name in ("dapo_math", "dapo_math:boxed", "gsm8k", "integer"):
        judgement = load(name)(response, "34")
        assert (judgement.correct is None) == (judgement.extracted is None)


@settings(max_examples=300, deadline=None)
@given(response=LATEX)
def test_an_extracted_answer_is_no_longer_than_the_tail_allows(response):
    extracted = dapo_math(response, "34").extracted or ""
    # Only the shorthands lengthen: "sqrt2" to "sqrt{2}", "frac12" to "frac{1}{2}".
    assert len(extracted) <= 2 * TAIL_CHARACTERS


@settings(max_examples=200, deadline=None)
@given(number=st.integers())
def test_every_integer_is_read_back(number):
    assert integer(f" {number}.", str(number)).correct is True
    assert dapo_math(f"So it is.\nAnswer: ${number}$", str(number)).correct is True
    assert gsm8k(f"It is {number:,}.00, I think.", f"Because.\n#### {number}").correct is True


@settings(max_examples=50, deadline=None)
@given(piece=PIECES, count=st.sampled_from([100_000]))
def test_a_long_key_or_response_is_read_in_linear_time(piece, count):
    """The key has no tail rule: a quadratic step would take minutes on it."""
    started = time.process_time()
    normalise(piece * count)
    dapo_math(piece * count, "34")
    dapo_math_boxed(piece * count, "34")
    gsm8k(piece * count, "34")
    assert time.process_time() - started < 5
