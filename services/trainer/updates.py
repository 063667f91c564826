"""The updates of one step: payloads in, a better policy and the step's statistics out.

    groups ──assemble──► micro-batches of each update, weights from the token counts of all ranks
           ──forward───► old log-probs (recompute; the first update gets them free)
           ──for each update: forward, loss, backward of each micro-batch; then one AdamW update
                              (with a KL term each forward is made by the reference model as well)

Every rank runs this with its own share; all run the same number of passes. Sums go over all ranks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from dapod.config import RunConfig
from dapod.types import Group
from dapod.v1.buffer_pb2 import BatchPlan
from services.trainer import batch as batches
from services.trainer import cut as cuts
from services.trainer.batch import MicroBatch
from services.trainer.cut import Row
from services.trainer.loss import Clipping, TokenLoss, importance_weights, k3, policy_loss
from services.trainer.metrics import TrainerMetrics
from services.trainer.normalise import Normaliser
from services.trainer.phases import Phases
from services.trainer.policy import Policy
from services.trainer.ranks import Ranks
from services.trainer.reference import Reference
from services.trainer.steps import TrainedStep
from services.trainer.stopped import Stopped

log = logging.getLogger("dapod.trainer")


@dataclass(kw_only=True)
class Sums:
    """What this rank has seen in a step; summed over ranks at its end."""

    loss: float = 0.0
    tokens: float = 0.0
    entropy: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    mismatch: float = 0.0
    mismatch_tokens: float = 0.0
    reference_kl: float = 0.0
    rollouts_dropped: float = 0.0


class Updates:
    """Trains one step at a time. `run` is called on every rank with the same plan."""

    def __init__(
        self,
        *,
        config: RunConfig,
        policy: Policy,
        reference: Reference | None = None,
        ranks: Ranks,
        phases: Phases,
        metrics: TrainerMetrics,
        stop: threading.Event,
    ) -> None:
        """`reference` is needed for a KL term and for nothing else."""
        self._algorithm = algorithm = config.algorithm
        assert (reference is None) == (algorithm.kl_coefficient == 0.0)
        self._tokens_per_micro_batch = config.trainer.tokens_per_micro_batch
        self._clipping = Clipping(
            low=algorithm.clip_low, high=algorithm.clip_high, dual=algorithm.dual_clip
        )
        self._normaliser = Normaliser(config)
        self._policy = policy
        self._reference = reference
        self._ranks = ranks
        self._phases = phases
        self._metrics = metrics
        self._stop = stop

    def cut(self, plan: BatchPlan) -> list[list[list[Row]]]:
        """[update][micro-batch][row] of this rank."""
        return [
            cuts.cut(
                groups,
                ranks=self._ranks.size,
                tokens_per_micro_batch=self._tokens_per_micro_batch,
            )[self._ranks.rank]
            for groups in cuts.updates(plan)
        ]

    def run(
        self, plan: BatchPlan, cut: list[list[list[Row]]], groups: Mapping[str, Group]
    ) -> TrainedStep:
        """`groups` holds the payloads that `cut` names."""
        sums = Sums()
        learning_rate = self._policy.learning_rate(plan.step)
        updates = self._assemble(plan, cut, groups)
        if self._algorithm.old_logprobs == "recompute":
            with self._phases("old_logprobs"):
                updates[1:] = [self._with_old_logprobs(update, sums) for update in updates[1:]]
        norms = []
        for number, update in enumerate(updates):
            with self._phases("update"):
                for micro_batch in update:
                    self._train(micro_batch, sums, number == 0, micro_batch is update[-1])
                self._phases.beat()
                norms.append(self._policy.update(learning_rate))
            self._metrics.updates.inc()
        return self._result(sums, norms, learning_rate)

    def _assemble(
        self, plan: BatchPlan, cut: list[list[list[Row]]], groups: Mapping[str, Group]
    ) -> list[list[MicroBatch]]:
        """Advantages from each group's rewards, weights from the token counts of all ranks."""
        advantages = batches.advantages(groups, scale=self._algorithm.advantage_scale)
        assembled = []
        for planned, micro_batches in zip(cuts.updates(plan), cut, strict=True):
            own = [row for rows in micro_batches for row in rows]
            weights = self._normaliser.weights(planned, own, groups, self._ranks.sum)
            assembled.append(
                [batches.assemble(rows, groups, advantages, weights) for rows in micro_batches]
            )
        return assembled

    def _with_old_logprobs(self, update: Sequence[MicroBatch], sums: Sums) -> list[MicroBatch]:
        done = []
        for micro_batch in update:
            with torch.no_grad():
                batch, logprobs, _ = self._forward(self._policy, micro_batch, sums)
            _add_mismatch(sums, batch, logprobs)
            done.append(replace(batch, old_logprobs=logprobs))
        return done

    def _train(self, micro_batch: MicroBatch, sums: Sums, first: bool, last: bool) -> None:
        """Forward, loss and backward of one micro-batch, of the first update or a later one."""
        reference = None
        if self._reference:
            micro_batch, reference, _ = self._forward(self._reference, micro_batch, sums)
        batch, logprobs, entropies = self._forward(self._policy, micro_batch, sums)
        if first:
            # Before the first update the policy is still the one of the start of the step.
            _add_mismatch(sums, batch, logprobs.detach())
        result = self._policy_loss(batch, logprobs)
        loss, trained = result.loss, batch.weights > 0
        if reference is not None:
            kl = k3(logprobs, reference)
            loss = loss + self._algorithm.kl_coefficient * (batch.weights * kl).sum()
            sums.reference_kl += float(kl.detach()[trained].sum())
        self._policy.backward(loss, last=last)
        sums.loss += float(loss.detach())
        sums.tokens += int(trained.sum())
        sums.entropy += float(entropies[trained].sum())
        sums.clipped_low += result.clipped_low
        sums.clipped_high += result.clipped_high

    def _policy_loss(self, batch: MicroBatch, logprobs: torch.Tensor) -> TokenLoss:
        """With the old log-probs and importance weights that `old_logprobs` asks for."""
        weights, old = batch.weights, batch.rollout_logprobs
        if self._algorithm.old_logprobs == "recompute":
            old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
            cap = self._algorithm.importance_weight_cap
            weights = weights * importance_weights(old, batch.rollout_logprobs, cap)
        return policy_loss(
            logprobs,
            old_logprobs=old,
            advantages=batch.advantages,
            weights=weights,
            clipping=self._clipping,
        )

    def _forward(
        self, model: Policy | Reference, batch: MicroBatch, sums: Sums
    ) -> tuple[MicroBatch, torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of a micro-batch without the rollouts that have no finite ones.

        Zero weights alone would not do: NaN times zero is NaN, in every gradient. So what is broken
        is blanked and the pass is repeated, on all ranks, for ZeRO-3 runs them in step.
        """
        if self._stop.is_set():
            raise Stopped
        self._phases.beat()
        logprobs, entropies = model.log_probs(batch)
        broken = batch.having(_not_finite(batch, logprobs))
        if not self._ranks.any(bool(broken.any())):
            return batch, logprobs, entropies
        del logprobs, entropies  # and what the pass kept for backward
        broken = self._broken_alone(model, batch)
        sums.rollouts_dropped += int(broken.sum())
        batch = batch.without(broken)
        return batch, *model.log_probs(batch)

    def _broken_alone(self, model: Policy | Reference, batch: MicroBatch) -> torch.Tensor:
        """[N + 1] bool: the rollouts that have no finite log-probs with nothing else in their row.

        Rollouts of a row do not see each other, but attention multiplies what it hides by zero: the
        NaN of one is in all of them, and even in their prompt. So each is asked alone, as many
        passes as the fullest row has rollouts; it is rare, and takes no more memory than the first.
        """
        broken, place = torch.zeros(len(batch.places), dtype=torch.bool), 0
        while self._ranks.any(place <= int(batch.places.max())):
            self._phases.beat()
            alone = batch.alone(place)
            with torch.no_grad():
                logprobs, _ = model.log_probs(alone)
            broken |= alone.having(_not_finite(alone, logprobs)) & (batch.places == place)
            place += 1
        return broken

    def _result(self, sums: Sums, norms: list[float], learning_rate: float) -> TrainedStep:
        names = [field.name for field in fields(Sums)]
        total = Sums(
            **dict(zip(names, self._ranks.sum([getattr(sums, n) for n in names]), strict=True))
        )
        tokens, mismatch_tokens = max(total.tokens, 1.0), max(total.mismatch_tokens, 1.0)
        if total.rollouts_dropped:
            log.warning("%d rollouts gave no finite log-probs", total.rollouts_dropped)
        return TrainedStep(
            entropy_nats=total.entropy / tokens,
            clip_fraction_low=total.clipped_low / tokens,
            clip_fraction_high=total.clipped_high / tokens,
            grad_norm=sum(norms) / len(norms),
            loss=total.loss / len(norms),
            learning_rate=learning_rate,
            mismatch_kl_nats=total.mismatch / mismatch_tokens,
            reference_kl_nats=total.reference_kl / tokens if self._reference else None,
            tokens_trained=int(total.tokens),
            rollouts_dropped=int(total.rollouts_dropped),
            updates=len(norms),
        )


def _not_finite(batch: MicroBatch, logprobs: torch.Tensor) -> torch.Tensor:
    """[T] bool: by this pass, or as the engine reported it."""
    return ~(torch.isfinite(logprobs.detach()) & torch.isfinite(batch.rollout_logprobs))


def _add_mismatch(sums: Sums, batch: MicroBatch, logprobs: torch.Tensor) -> None:
    trained = batch.weights > 0
    sums.mismatch += float(k3(batch.rollout_logprobs, logprobs)[trained].sum())
    sums.mismatch_tokens += int(trained.sum())
