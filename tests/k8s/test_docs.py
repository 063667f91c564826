"""docs/kubernetes.md names folders that exist and combinations that are tested."""

import re

import pytest
import yaml

from tests.k8s.manifests import COMBINATIONS, COMPONENTS, OVERLAYS, ROOT, build, named

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def test_every_folder_is_described() -> None:
    described = set(re.findall(r"^\| `((?:overlays|components)/[a-z-]+)`", PAGE, re.M))
    assert described == {
        *(f"overlays/{name}" for name in OVERLAYS),
        *(f"components/{name}" for name in COMPONENTS),
    }


def test_every_path_on_the_page_exists() -> None:
    for path in re.findall(r"\bk8s/[\w./-]*\w", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if "components" in block], ids=lambda b: str(len(b))
)
def test_every_combination_on_the_page_is_tested(block: dict[str, list[str]]) -> None:
    names = tuple(path.rpartition("/")[2] for path in block["components"])
    assert names in {combination[1:] for combination in COMBINATIONS}


def test_the_page_replaces_a_config_map_that_the_base_has() -> None:
    (block,) = [b for b in BLOCKS if "configMapGenerator" in b]
    for generator in block["configMapGenerator"]:
        made = named(build("base"), "ConfigMap", generator["name"])
        assert generator["behavior"] == "merge"
        assert set(generator["files"]) <= set(made["data"])
