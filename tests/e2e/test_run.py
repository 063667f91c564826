"""`dapod run` with everything real: Valkey, vLLM, DeepSpeed, gRPC and a pretrained model.

The tests look at what it said while it went on, and at what it left.
"""

import json

import pytest

from dapod.policy_store import PolicyStore
from tests.e2e.finished_run import PROMPTS, SERVICES, STEPS, Finished
from tests.e2e.policy_answers import accuracy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DOCUMENTED = """
    step policy_version accuracy reward_mean response_tokens_mean truncated_ratio entropy_nats
    clip_fraction_low clip_fraction_high grad_norm loss learning_rate mismatch_kl_nats
    reference_kl_nats groups_leased
    groups_kept groups_all_correct groups_all_wrong groups_stale groups_failed tokens_generated
    tokens_trained staleness_mean staleness_max seconds_wait seconds_train seconds_publish
    seconds_evaluate seconds_total time_unix
"""


def test_each_step_has_one_row_with_exactly_the_documented_keys(finished: Finished) -> None:
    assert [row["step"] for row in finished.rows] == list(range(STEPS))
    assert [row["policy_version"] for row in finished.rows] == list(range(1, STEPS + 1))
    assert all(list(row) == DOCUMENTED.split() for row in finished.rows)


def test_the_numbers_of_the_rows_make_sense(finished: Finished) -> None:
    for row in finished.rows:
        assert row["entropy_nats"] > 0 and row["grad_norm"] > 0 and row["tokens_trained"] > 0
        assert -0.01 < row["mismatch_kl_nats"] < 0.5
        assert row["learning_rate"] == pytest.approx(4e-5)
        assert row["seconds_total"] >= row["seconds_train"] > 0
    # The rollouts may have been so far ahead that nothing was left to sample in a step.
    sampled = [row for row in finished.rows if row["tokens_generated"]]
    assert len(sampled) >= 2
    for row in sampled:
        assert 0 < row["accuracy"] < 1
        assert -1 <= row["reward_mean"] <= 1
        assert 1 <= row["response_tokens_mean"] <= 16


def test_two_updates_a_step_make_the_clip_bind(finished: Finished) -> None:
    assert any(row["clip_fraction_high"] > 0 for row in finished.rows)
    assert any(row["clip_fraction_low"] > 0 for row in finished.rows)


def test_no_group_is_stale_and_none_is_older_than_one_version(finished: Finished) -> None:
    assert all(row["groups_stale"] == 0 and row["staleness_max"] <= 1 for row in finished.rows)
    assert finished.rows[0]["staleness_max"] == 0


def test_the_summary_says_that_every_group_is_accounted_for(finished: Finished) -> None:
    summary = json.loads((finished.run_dir / "summary.json").read_text())
    assert summary["steps"] == summary["steps_wanted"] == STEPS
    assert summary["conservation_error"] == 0
    assert summary["groups"]["trained"] == PROMPTS * STEPS
    assert not any(summary["restarts"].values())


def test_a_run_leaves_curves_and_a_log_of_each_service(finished: Finished) -> None:
    assert (finished.run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    for service in (*SERVICES, "valkey", "runner"):
        assert (finished.run_dir / "logs" / f"{service}.log").stat().st_size > 0
    assert "group=" in (finished.run_dir / "logs" / "buffer.log").read_text()
    assert "Traceback" not in "".join(
        file.read_text() for file in (finished.run_dir / "logs").glob("*.log")
    )


def test_the_last_lines_say_what_was_learned_where_it_is_and_what_to_try(
    finished: Finished,
) -> None:
    last = finished.end.output[finished.end.output.index("trained 4 of 4 steps") :]
    assert "accuracy" in last and "in the first step" in last
    assert "first policy" in last and "last policy" in last
    table = last[last.index("first policy") : last.index("files:")]
    assert len([line for line in table.splitlines()[1:] if "What is " in line]) == 6
    for name in (f"policies/v{STEPS}", "steps.jsonl", "summary.json", "curves.png", "logs"):
        assert str(finished.run_dir / name) in last
    assert "--resume --steps 8" in last[last.index("try next") :]


def test_every_service_serves_its_pages_while_the_run_goes_on(finished: Finished) -> None:
    for service in SERVICES:
        assert finished.pages[service, "/healthz"].status == 200
        assert finished.pages[service, "/readyz"].json["activity"]
        assert (
            finished.pages[service, "/config"].json["algorithm"]["prompts_per_update"]
            == PROMPTS // 2
        )
        names = _metric_names(finished.pages[service, "/metrics"].text)
        own = {name for name in names if name.startswith(f"dapod_{service}_")}
        assert len(own) > 5
        assert {name for name in names if name.startswith("dapod_")} == own


def test_a_service_that_is_not_ready_says_why(finished: Finished) -> None:
    assert finished.not_ready["ready"] is False
    assert len(finished.not_ready["activity"]) > 5


def test_nothing_is_left_running(finished: Finished) -> None:
    assert finished.left == []


def test_the_newest_policy_is_as_good_in_plain_transformers_as_the_log_says(
    finished: Finished,
) -> None:
    logged = [row["accuracy"] for row in finished.rows if row["accuracy"] is not None][-1]
    store = PolicyStore(finished.run_dir / "policies")
    newest = store.verify(store.versions()[-1])
    # 192 answers, and the log counts answers of the version before as well.
    assert accuracy(newest, questions=96, repeat=2) > logged - 0.12


def _metric_names(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
