"""What the tokenizer's chat template puts around a system turn, a user turn and an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ANSWER, _AGAIN = (
    "\ue0f0fenlei:system\ue0f1",
    "\ue0f0fenlei:user\ue0f1",
    "\ue0f0fenlei:answer\ue0f1",
    "\ue0f0fenlei:again\ue0f1",
)

# Fixed values for what some templates make up at render time: Llama 3 prints today's date into every prompt, which
# would make a classifier's answers change from day to day; Qwen3 opens a thinking block unless told not to.
_TEMPLATE_VALUES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class ChatFrame:
    """The chat template cut at its contents; each part is text that may hold control tokens.

    Attributes:
        before_system: text before the system turn's content, or before the user's when ``merged``.
        between: text from the end of the system content to the start of the user content.
        after_user: text from the end of the user content to where the answer begins.
        turn_end: token ids that end an answer (with Qwen ``<|im_end|>``).
        merged: the template knows no system turn: its content goes to the front of the user turn.
    """

    before_system: str
    between: str
    after_user: str
    turn_end: tuple[int, ...]
    merged: bool

    def to_dict(self) -> dict[str, Any]:
        """For prompt.json."""
        return {**asdict(self), "turn_end": list(self.turn_end)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatFrame:
        """From prompt.json."""
        return cls(**{**values, "turn_end": tuple(int(i) for i in values["turn_end"])})


def chat_frame(tokenizer: PreTrainedTokenizerBase, *, with_system: bool) -> ChatFrame:
    """Reads the frame off the tokenizer's own chat template.

    A tokenizer without a chat template (a base model) gets a plain frame: the turns one below the other, and its
    end-of-text token after the answer.

    Raises:
        ModelError: the template does not render, or no token ends an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        between = "\n\n" if with_system else ""
        return ChatFrame(_start_of_text(tokenizer), between, "\n", _end_of_text(tokenizer), merged=False)
    merged = not with_system
    prompt = None
    if with_system:
        prompt = _render(tokenizer, [("system", _SYSTEM), ("user", _USER)])
        merged = prompt is None or prompt.count(_SYSTEM) != 1
    if merged:
        prompt = _render(tokenizer, [("user", _USER)])
    if prompt is None or prompt.count(_USER) != 1:
        raise ModelError("the tokenizer's chat template does not render a user turn; is this an instruct model?")
    head, after_user = prompt.split(_USER)
    before, between = head.split(_SYSTEM) if not merged else (head, "\n\n" if with_system else "")
    return ChatFrame(before, between, after_user, _turn_end(tokenizer, merged), merged)


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> str | None:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=turns[-1][0] == "user", **_TEMPLATE_VALUES
        )
    except (TemplateError, ValueError, TypeError, KeyError):  # e.g. Gemma 2: "System role not supported"
        return None
    return str(rendered)


def _turn_end(tokenizer: PreTrainedTokenizerBase, merged: bool) -> tuple[int, ...]:
    """Ids from the end of an answer up to and including the first control token, as the template writes them."""
    turns = [("user", _USER), ("assistant", _ANSWER)]
    rendered = _render(tokenizer, turns if merged else [("system", _SYSTEM), *turns])
    if rendered is None or rendered.count(_ANSWER) != 1:
        return _end_of_text(tokenizer)
    control = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    ids = tokenizer(rendered.split(_ANSWER)[1], add_special_tokens=False)["input_ids"]
    for position, token in enumerate(ids):
        if token in control:
            return tuple(ids[: position + 1])
    return _end_of_text(tokenizer)


def next_turn(tokenizer: PreTrainedTokenizerBase, chat: ChatFrame) -> tuple[int, ...]:
    """Ids between the end of an answer and the content of the user turn after it, for solved examples in a prompt.

    Raises:
        ModelError: the chat template does not render a second user turn, or not after the end of the answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        return tuple(tokenizer("\n\n", add_special_tokens=False)["input_ids"])
    turns = [("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)]
    rendered = _render(tokenizer, turns if chat.merged else [("system", _SYSTEM), *turns])
    if rendered is None or rendered.count(_ANSWER) != 1 or rendered.count(_AGAIN) != 1:
        raise ModelError("the tokenizer's chat template does not render a second user turn")
    between = rendered.split(_ANSWER)[1].split(_AGAIN)[0]
    ids = tuple(tokenizer(between, add_special_tokens=False)["input_ids"])
    if ids[: len(chat.turn_end)] != chat.turn_end:
        raise ModelError("the tokenizer's chat template does not end an answer as it does the last one")
    return ids[len(chat.turn_end) :]


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the tokenizer puts before every text by itself, if any (Gemma is lost without it)."""
    first = list(tokenizer("x")["input_ids"])[:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has neither a chat template that ends a turn nor an end-of-text token")
    return (int(tokenizer.eos_token_id),)
