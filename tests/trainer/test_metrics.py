"""What the trainer's page says before there is anything to say."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from services.trainer.metrics import TrainerMetrics

ROW = {
    "clip_fraction_low": 0.01,
    "clip_fraction_high": 0.02,
    "tokens_trained": 7,
    "loss": 0.5,
    "entropy_nats": 1.5,
    "mismatch_kl_nats": 0.001,
    "grad_norm": 2.0,
    "learning_rate": 1e-5,
    "accuracy": None,
    "reward_mean": None,
    "response_tokens_mean": 9.0,
    "truncated_ratio": 0.25,
    "staleness_mean": 0.5,
    "staleness_max": 1,
}


def test_a_step_that_was_not_trained_is_not_shown_as_zero() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    assert math.isnan(registry.get_sample_value("dapod_trainer_entropy_nats"))
    assert registry.get_sample_value("dapod_trainer_policy_version") == -1
    metrics.show(ROW, rollouts_dropped=0)
    assert registry.get_sample_value("dapod_trainer_entropy_nats") == 1.5
    assert registry.get_sample_value("dapod_trainer_staleness_max") == 1
    assert math.isnan(registry.get_sample_value("dapod_trainer_accuracy_ratio"))
