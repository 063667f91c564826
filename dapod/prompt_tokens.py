"""A conversation to prompt token ids without torch: `tokenizers` and the model's chat template.

transformers would do the same and import torch on the way (seconds, hundreds of megabytes); a test
compares the two. A template's date is left to its own default: prompts must not change at midnight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
from tokenizers import Tokenizer

from dapod.config import ConfigError
from dapod.dataset.rows import Message
from dapod.model_files import read_json
from dapod.types import TokenIds

SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class PromptTokenizer:
    """The tokenizer of one model directory."""

    def __init__(self, directory: Path, *, chat: bool) -> None:
        self._tokenizer = _tokenizer(directory / "tokenizer.json")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = read_json(directory / "tokenizer_config.json")
        self._special = {name: _text(settings[name]) for name in SPECIAL if settings.get(name)}
        self._template = _template(directory, settings) if chat else None

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[TokenIds]:
        """The prompts of conversations, as `apply_chat_template` with a generation prompt.

        Without a chat template: the one message as it is.
        """
        texts = [self._render(messages) for messages in conversations]
        # A chat template writes the special tokens itself.
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=self._template is None)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _render(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            (message,) = messages
            return message.content
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                **self._special,
            )
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template fails: {error}") from error


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"model.path: {file} is no tokenizer: {error}") from error
    return tokenizer


def _template(directory: Path, settings: dict[str, Any]) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(_source(directory, settings))
    except jinja2.TemplateError as error:
        raise ConfigError(
            f"model.path: the chat template of {directory} is broken: {error}"
        ) from error


def _source(directory: Path, settings: dict[str, Any]) -> str:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ConfigError(f"model.path: {directory} has no chat template; set data.chat = false")
    return template


def _text(token: str | dict[str, Any]) -> str:
    return str(token["content"]) if isinstance(token, dict) else token


def _raise_exception(message: str) -> None:
    """What chat templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)
