"""`evaluations.jsonl`: a row for each evaluated policy. Here alone stands what each key means.

The buffer counts (docs/decisions/0006-evaluation.md); the trainer fetches what has ended and writes
it down as it comes, so the file lies beside `steps.jsonl` and follows the same checkpoints: a
resume at checkpoint c keeps the rows of policies 0..c and sets the others aside.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from dapod.config import RunConfig
from dapod.evaluation import Estimate, metrics, score
from dapod.types import PolicyVersion
from dapod.v1.buffer_pb2 import Evaluation
from dapod.wire import policy_from_proto, verdict_from_proto
from services.trainer.metrics import TrainerMetrics
from services.trainer.row_log import RowLog
from services.trainer.source import Source

ROWS = "evaluations.jsonl"

log = logging.getLogger("dapod.trainer")


def row(evaluation: Evaluation, samples: int) -> dict[str, Any]:
    """The row of an evaluation, in the documented order. Means are null over nothing."""
    verdicts = [
        [verdict_from_proto(verdict) for verdict in problem.verdicts]
        for problem in evaluation.results
    ]
    found = metrics([score(one) for one in verdicts], rollouts=samples, pass_at=[samples])
    answers = sum(map(len, verdicts))
    tokens = sum(problem.response_tokens for problem in evaluation.results)
    return {
        # Steps trained when the policy was published: its number.
        "step": evaluation.policy.number,
        "policy_version": evaluation.policy.number,
        "lineage": evaluation.policy.lineage,
        # Problems of the data set; those that have a result; K answers to each of these.
        "problems": evaluation.problems,
        "problems_done": len(evaluation.results),
        "samples": samples,
        # dapod/evaluation.py: means over problems with a judged answer, and 95 % intervals of them.
        **_estimates("avg_at_k", found.get(f"avg@{samples}")),
        **_estimates("pass_at_k", found.get(f"pass@{samples}")),
        **_estimates("maj_at_k", found.get(f"maj@{samples}")),
        # Over all answers.
        "truncated_ratio": _share(sum(p.truncated for p in evaluation.results), answers),
        "response_tokens_mean": _share(tokens, answers),
        # Answers that could not be judged: in no mean above.
        "verifications_failed": sum(v.correct is None for one in verdicts for v in one),
        # Why not all problems were done; null when all were.
        "dropped_because": evaluation.dropped_because or None,
        # From the first lease to the end.
        "seconds": evaluation.seconds,
        "time_unix": time.time(),
    }


def _estimates(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    interval = estimate.interval
    return {name: estimate.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


class Evaluations:
    """The evaluations of a run as rank 0 writes them down; none without `[evaluation]`."""

    def __init__(
        self,
        *,
        config: RunConfig,
        run_dir: Path,
        source: Source,
        metrics: TrainerMetrics,
    ) -> None:
        self._samples = 0 if config.evaluation is None else config.evaluation.samples
        self._log = RowLog(run_dir / ROWS, key="policy_version")
        self._source = source
        self._metrics = metrics
        self.known: list[PolicyVersion] = []
        """Those in the file."""

    def cut_back(self, step: int) -> None:
        """Policies after the checkpoint of `step` are superseded."""
        self._log.cut_back(step + 1)
        self.known = [
            PolicyVersion(number=values["policy_version"], lineage=values["lineage"])
            for values in self._log.rows()
        ]

    def collect(self) -> str:
        """Writes down what has ended; says what is being evaluated, or nothing."""
        if not self._samples:
            return ""
        while (reply := self._source.evaluations(self.known)).HasField("evaluation"):
            self._add(reply.evaluation)
        return reply.waiting_for

    def _add(self, evaluation: Evaluation) -> None:
        values = row(evaluation, self._samples)
        self._log.append(values)
        self.known.append(policy_from_proto(evaluation.policy))
        self._metrics.show_evaluation(values)
        log.info(
            "policy v%d is evaluated: avg@%d %s over %d of %d problems%s",
            evaluation.policy.number,
            self._samples,
            "-" if values["avg_at_k"] is None else f"{values['avg_at_k']:.3f}",
            values["problems_done"],
            evaluation.problems,
            f" ({evaluation.dropped_because})" if evaluation.dropped_because else "",
        )
