"""The checked-in code is what proto/ says, and proto/ is clean."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    """What `command` printed, which must end well, soon."""
    done = subprocess.run(
        command, cwd=ROOT, timeout=60, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def generated(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "dapod/v1").glob("*_pb2*.py*")}


def test_generating_again_gives_the_code_that_is_checked_in(tmp_path: Path) -> None:
    run("make", "generated", f"OUT={tmp_path}", f"BIN={BIN}")
    fresh, checked_in = generated(tmp_path), generated(ROOT)
    assert fresh
    assert fresh.keys() == checked_in.keys(), "run `make proto`"
    differing = [name for name in fresh if fresh[name] != checked_in[name]]
    assert differing == [], "run `make proto`"


def test_the_contract_passes_bufs_lint() -> None:
    assert run(str(BIN / "buf"), "lint", "proto") == ""
