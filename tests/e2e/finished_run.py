"""One run from its start to its end, with everything real, for all tests that look at such a run.

Four steps of two updates, version 0, 2 and 4 evaluated; where there is a Prometheus, it watches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.deploy.live_prometheus import LivePrometheus, has_prometheus
from tests.e2e.live_run import QUICKSTART, End, LiveRun, Page, read_rows

STEPS, PROMPTS, GROUP_SIZE = 4, 8, 8
EVALUATED = [0, 2, 4]
PROBLEMS, ANSWERS = 12, 2
"""Of an evaluation, and to each of its problems."""
SERVICES = ("buffer", "reward", "rollout", "trainer")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was seen of a run, and what it left."""

    run_dir: Path
    end: End
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    not_ready: dict[str, Any]
    """What /readyz of the rollout said while its engine started."""
    pages: dict[tuple[str, str], Page]
    """By service and path, after the first step."""
    prometheus: LivePrometheus | None
    """It remembers the run; None where it isn't installed."""
    left: list[str]
    """Processes."""


@contextmanager
def finish_a_run(folder: Path) -> Iterator[Finished]:
    """Runs it in `folder`; Prometheus answers until the block ends."""
    with (
        ExitStack() as stack,
        LiveRun.start(folder / "run", steps=STEPS, settings=_settings(folder)) as run,
    ):
        not_ready: list[Page] = []
        run.wait(lambda: _not_ready(run, not_ready), "the rollout says that it is not ready yet")
        run.wait(lambda: set(SERVICES) <= set(run.services()), "all services are started")
        watching = _watched(run, folder / "prometheus") if has_prometheus() else None
        prometheus = stack.enter_context(watching) if watching else None
        run.wait_for_steps(1)
        pages = {
            (service, path): page
            for service in SERVICES
            for path in ("/healthz", "/readyz", "/metrics", "/config")
            if (page := run.page(service, path))
        }
        run.wait_for_steps(STEPS)
        if prometheus:
            prometheus.ask_no_later_than_now()
        end = run.wait_until_ended()
        assert end.status == 0, run.story()
        yield Finished(
            run_dir=run.run_dir,
            end=end,
            rows=run.rows(),
            evaluations=read_rows(run.run_dir / "evaluations.jsonl"),
            not_ready=not_ready[0].json,
            pages=pages,
            prometheus=prometheus,
            left=run.left_behind(),
        )


def _settings(folder: Path) -> dict[str, object]:
    rows = (QUICKSTART.parent / "one_digit_arithmetic.jsonl").read_text().splitlines(keepends=True)
    (folder / "problems.jsonl").write_text("".join(rows[5::16][:PROBLEMS]))
    return {
        "algorithm.prompts_per_update": PROMPTS // 2,
        "evaluation.every_steps": 2,
        "evaluation.samples": ANSWERS,
        "evaluation.top_p": 0.7,
        "evaluation.data.path": folder / "problems.jsonl",
        "evaluation.data.prompt_column": "question",
        "evaluation.data.template": "{prompt} Reply with only the number.",
        "evaluation.data.verifier": "integer",
    }


def _not_ready(run: LiveRun, seen: list[Page]) -> bool:
    page = run.page("rollout", "/readyz")
    seen += [page] if page is not None and page.status == 503 else []
    return bool(seen)


def _watched(run: LiveRun, folder: Path) -> Any:
    addresses = {name: [urlsplit(run.services()[name]["ops"]).netloc] for name in SERVICES}
    return LivePrometheus.start(folder, addresses)
