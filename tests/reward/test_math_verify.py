"""math_verify in a real worker, as the service uses it: sympy is imported there and not here."""

import pytest

from dapod.types import Outcome
from services.reward.process import Job
from services.reward.template import WorkerTemplate

CORRECT, WRONG, UNPARSED = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED


@pytest.fixture(scope="module")
def judge():
    template = WorkerTemplate(verifiers=["math_verify"], memory_bytes=256 << 20)
    template.wait_until_warm(60)
    worker = template.start_worker()

    def ask(response, answer):
        return worker.judge(Job(verifier="math_verify", response=response, answer=answer), 20)

    yield ask
    assert worker.alive  # not one of these may end it
    worker.close()
    template.close()


@pytest.mark.parametrize(
    ("key", "written", "outcome"),
    [
        ("1/2", "0.5", CORRECT),
        ("\\frac{1}{2}", "\\frac{2}{4}", CORRECT),
        ("$\\frac12$", "\\dfrac{1}{2}", CORRECT),
        ("\\boxed{7}", "7", CORRECT),
        ("x^2+2x+1", "(x+1)^2", CORRECT),
        ("x^2+2x+1", "(x-1)^2", WRONG),
        ("\\sqrt{8}", "2\\sqrt2", CORRECT),
        ("10^{-3}", "0.001", CORRECT),
        ("1,234", "1234", CORRECT),
        ("12 cm", "12\\text{ cm}", CORRECT),
        ("90^\\circ", "90", CORRECT),
        ("\\{1,2\\}", "2, 1", CORRECT),
        ("(1,2)", "(1,2)", CORRECT),
        ("(1,2)", "(2,1)", WRONG),
        ("[0,1)", "[0,1)", CORRECT),
        ("x<3", "3>x", CORRECT),
        ("5", "x=5", CORRECT),
        ("\\text{odd}", "\\text{odd}", CORRECT),
        ("A", "A", CORRECT),
        ("A", "B", WRONG),
        ("5", "\\frac{1}{0}", WRONG),
        ("5", "", UNPARSED),
        ("42", "5" + "3" * 2000, UNPARSED),
    ],
)
def test_boxed_expressions_are_compared_by_value(judge, key, written, outcome):
    assert judge(f"Hence \\boxed{{{written}}}.", key).outcome is outcome


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("first \\boxed{41}, then \\boxed{42}", CORRECT),
        ("first \\boxed{42}, then \\boxed{41}", WRONG),
        ("\\boxed{41} no, 42", WRONG),  # a box is the answer, whatever follows
        ("\\boxed{\\boxed{42}}", CORRECT),
        ("so \\boxed{42", UNPARSED),
        ("it was 41, \\boxed{42", UNPARSED),  # not the number beside an open box
        ("the answer is 42.", CORRECT),
        ("the answer is $\\frac{84}{2}$.", CORRECT),
        ("x is 41 and y is 42", CORRECT),
        ("41" + "\nnothing to see" * 500 + "\nso $42$", CORRECT),
        ("42" + "\nnothing to see" * 500, UNPARSED),
        ("nothing", UNPARSED),
        ("", UNPARSED),
    ],
)
def test_without_a_box_the_last_expression_counts(judge, response, outcome):
    assert judge(response, "42").outcome is outcome


def test_what_was_read_is_shown(judge):
    assert judge("so \\boxed{\\frac12}", "0.5").extracted == "\\frac{1}{2}"


def test_a_key_that_is_no_expression_is_the_verifiers_error():
    template = WorkerTemplate(verifiers=["math_verify"], memory_bytes=256 << 20)
    template.wait_until_warm(60)
    worker = template.start_worker()
    verification = worker.judge(Job(verifier="math_verify", response="5", answer=""), 20)
    assert verification.outcome is Outcome.ERROR
    assert "the key '' is no expression" in verification.detail
    worker.close()
    template.close()
