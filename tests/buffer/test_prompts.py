"""The order of prompts, the queue over it, and tokens as transformers would make them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from dapod.config import ConfigError
from dapod.dataset import Message
from dapod.prompt_tokens import PromptTokenizer
from services.buffer.prompts import Cursor, load_prompts
from tests.buffer.world import World, make_config, make_prompts, repository

MODEL = repository() / "models" / "smollm2-135m-instruct"
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="dapod model fetch has not run")


def test_the_order_follows_from_the_seed_and_differs_by_epoch() -> None:
    prompts = make_prompts(10)
    ids, behind = prompts.next_ids(Cursor(epoch=0, position=0), 25)
    assert ids[:3] == ["0-1", "0-0", "0-2"], "what a seed means must never change"
    assert behind == Cursor(epoch=2, position=5)
    rows = [[int(id_.split("-")[1]) for id_ in ids[start : start + 10]] for start in (0, 10)]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(10)) and rows[0] != rows[1]
    assert prompts.next_ids(Cursor(epoch=0, position=0), 1)[0] == ids[:1]


@pytest.mark.parametrize(
    "group_id", ["", "0", "0-", "x-1", "0-40", "00-1", "0-01", "0--1", "0-1-1"]
)
def test_an_identity_that_cannot_be_is_unknown(group_id: str) -> None:
    with pytest.raises(KeyError):
        make_prompts(40).get(group_id)


def test_the_cursor_survives_a_restart_and_no_prompt_is_queued_twice(client: redis.Redis) -> None:
    seen = []
    for restart in range(4):
        world = World(client, prompts=make_prompts(9))
        if restart == 0:
            world.resume(0)
        world.lineage = "first"
        for _ in range(6):
            (lease,) = world.lease("a", 0, 1)
            seen.append(lease.group_id)
            world.submit(lease, "all_wrong")
    assert seen == make_prompts(9).next_ids(Cursor(epoch=0, position=0), 24)[0]
    assert world.conserved().epoch == 3


def test_two_replicas_that_fill_the_queue_at_once_fill_it_once(world: World) -> None:
    args = {"from": [0, 0], "to": [0, 2], "order": 0, "ids": ["0-1", "0-2"]}
    world.client.delete(world.key("meta"))
    assert world.scripts.call("enqueue", args) == 2
    assert world.scripts.call("enqueue", args) == -1
    world.conserved()


def test_more_leases_than_the_queue_holds_are_granted_in_one_call(make_world) -> None:
    world = make_world(prompts_per_step=8)
    world.lease("a", None, 0)
    assert len(world.lease("a", 0, 11)) == 11


def test_another_data_set_under_the_same_run_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="another data"):
        World(world.client, prompts=make_prompts(41))


def test_another_config_under_the_same_run_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="another config"):
        World(world.client, config=make_config(optimiser={"learning_rate": 0.5}))


def quickstart_like(tmp_path: Path, **sampling: object):
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": "é " * 30, "answer": "?"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return make_config(
        model={"path": str(MODEL)},
        data={"path": str(file)},
        sampling={"max_prompt_tokens": 200, **sampling},
        trainer={"tokens_per_micro_batch": 1024},
    )


@needs_model
def test_prompts_that_are_too_long_are_counted_and_named(tmp_path: Path) -> None:
    first = re.escape(f"(first: {tmp_path}/data.jsonl line 2; ")
    with pytest.raises(ConfigError, match=rf"1 of 2 prompts are longer .* = 50 {first}"):
        load_prompts(quickstart_like(tmp_path, max_prompt_tokens=50))


@needs_model
def test_the_log_and_the_health_page_say_what_became_of_the_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = quickstart_like(tmp_path, max_prompt_tokens=50)
    data = config.data.model_copy(update={"long_prompts": "filter"})
    with caplog.at_level("INFO"):
        prompts = load_prompts(config.model_copy(update={"data": data}))
    assert prompts.counts == "2 rows read, 1 filtered for their length, 1 kept"
    assert f"data set {tmp_path}/data.jsonl: {prompts.counts}" in caplog.text
    assert len(prompts) == 1


@needs_model
def test_the_same_data_gives_the_same_prompts_and_other_data_another_digest(tmp_path: Path) -> None:
    config = quickstart_like(tmp_path)
    first, again = load_prompts(config), load_prompts(config)
    assert first.digest == again.digest
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('\n{"prompt": "new", "answer": "3"}')
    assert load_prompts(config).digest != first.digest


COMPARE = """
import json, sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
tokens = []
for message in json.load(sys.stdin):
    turns = [{"role": "user", "content": message}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    tokens.append([ids, tokenizer(message)["input_ids"]])
print(json.dumps(tokens))
"""


@needs_model
def test_tokens_are_those_of_transformers() -> None:
    messages = [
        "What is 7 + 5? Reply with only the number.",
        "  x\n\n<|im_end|> ü 漢字\t",
        "{{ a }}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(MODEL)],
        input=json.dumps(messages),
        capture_output=True,
        text=True,
        timeout=100,
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        check=True,
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    conversations = [(Message(role="user", content=message),) for message in messages]
    chat = PromptTokenizer(MODEL, chat=True).encode(conversations)
    plain = PromptTokenizer(MODEL, chat=False).encode(conversations)
    assert [[a.tolist(), b.tolist()] for a, b in zip(chat, plain, strict=True)] == expected


@needs_model
def test_the_service_does_not_import_torch() -> None:
    code = "import services.buffer.__main__, sys; assert not {'torch', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True, cwd=repository())
