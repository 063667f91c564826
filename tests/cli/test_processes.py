"""Finding and killing processes by their environment."""

import os
import subprocess
import sys
import uuid

from dapod.cli.processes import TOKEN, carrying, kill_all
from tests.cli.waiting import wait_until

IN_A_SESSION_OF_ITS_OWN = (
    "import subprocess, sys;"
    "code = 'import time; time.sleep(60)';"
    "subprocess.Popen([sys.executable, '-c', code], start_new_session=True)"
)


def test_a_grandchild_in_a_session_of_its_own_is_found_and_killed() -> None:
    token = {TOKEN: uuid.uuid4().hex}
    subprocess.run([sys.executable, "-c", IN_A_SESSION_OF_ITS_OWN], env={**os.environ, **token})
    wait_until(lambda: len(carrying(token)) == 1, "the orphan")
    assert kill_all(token)
    assert carrying(token) == []


def test_a_process_of_another_run_is_left_alone() -> None:
    mine, other = {TOKEN: uuid.uuid4().hex}, {TOKEN: uuid.uuid4().hex}
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **other}
    )
    try:
        assert kill_all(mine)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(timeout=5)


def test_every_variable_must_match() -> None:
    token = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, TOKEN: token, "DAPOD_SERVICE": "trainer"},
    )
    try:
        wait_until(lambda: carrying({TOKEN: token}) == [process.pid], "the process")
        assert carrying({TOKEN: token, "DAPOD_SERVICE": "buffer"}) == []
    finally:
        process.kill()
        process.wait(timeout=5)
