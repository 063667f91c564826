"""A verifier's name is refused by its form, before anything that could load it is there."""

from pathlib import Path

import pytest

from dapod.verifier_name import FORMS, VerifierName

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "file", "parameter"),
    [
        ("integer", "integer", ""),
        ("dapo_math", "dapo_math", ""),
        ("dapo_math:boxed", "dapo_math", "boxed"),
        ("reasoning_gym:chain_sum", "reasoning_gym", "chain_sum"),
        ("python:my.checks:is_right", "python", "my.checks:is_right"),
    ],
)
def test_a_name_is_a_file_and_what_the_form_asks_for(name, file, parameter):
    assert VerifierName.parse(name) == VerifierName(file=file, parameter=parameter)


@pytest.mark.parametrize(
    "name",
    [
        *("", "nonsense", "Integer", "integer:3", "integer:", "math_verify ", "dapo_math:box"),
        *("python", "python:", "python:os", "python:os:", "python::f", "python:a:b:c"),
        *("reasoning_gym", "reasoning_gym:", "reasoning_gym:a:b"),
    ],
)
def test_a_name_of_no_form_is_refused_with_the_forms_there_are(name):
    with pytest.raises(ValueError, match=r" is not a verifier; use one of .*reasoning_gym:<") as it:
        VerifierName.parse(name)
    assert str(it.value).startswith(repr(name))


def test_every_form_has_its_verifier_and_every_verifier_its_form():
    folder = ROOT / "services" / "reward" / "verifiers"
    makers = {file.stem for file in folder.glob("*.py") if "\ndef make(" in file.read_text()}
    assert {form.partition(":")[0] for form in FORMS} == makers
