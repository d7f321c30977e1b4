"""Builds the Hugging Face tokenizer that a GGUF file describes.

Byte-level BPE vocabularies whose splitting rule is known are built directly, which takes a second. Everything else goes
through transformers' own GGUF reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError
from fenlei.modeling.sources.gguf_file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Token types of the GGUF specification.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_END_OF_TEXT = "<|endoftext|>"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Rule:
    """How a family of tokenizers cuts text before BPE; ``pattern`` None is GPT-2's own."""

    pattern: str | None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False


# `tokenizer.ggml.pre` -> rule, as in the tokenizer.json that each family publishes.
_RULES: dict[str, _Rule] = {
    "qwen2": _Rule(_WORDS + r"\p{N}" + _REST, nfc=True),
    "llama-bpe": _Rule(_WORDS + r"\p{N}{1,3}" + _REST, ignore_merges=True),
    "smollm": _Rule(None, single_digits=True),
    "gpt-2": _Rule(None),
}


def build_tokenizer(gguf: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer with its special tokens and chat template.

    Args:
        gguf: a checked header.

    Raises:
        ModelError: the file holds no tokenizer, a damaged one, or one that cannot be read here.
    """
    pre = str(gguf.metadata.get("tokenizer.ggml.pre", ""))
    if gguf.metadata.get("tokenizer.ggml.model") == "gpt2" and pre in _RULES:
        try:
            return _byte_level(gguf, _RULES[pre])
        except ModelError:
            raise
        except Exception as error:  # the libraries raise many kinds; the user needs one
            raise ModelError(
                f"{gguf.path}: the tokenizer in this GGUF file is damaged ({_first_line(error)}); fetch the file again"
            ) from None
    return _through_transformers(gguf)


def _byte_level(gguf: GgufFile, rule: _Rule) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens, types = _vocabulary(gguf)
    merges = _merges(gguf, tokens)
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.ignore_merges))
    _set_pipeline(tokenizer, rule)
    special = {i: types[i] == _CONTROL for i in range(len(tokens)) if types[i] in (_CONTROL, _USER_DEFINED)}
    tokenizer.add_tokens(
        [AddedToken(tokens[i], special=is_special, normalized=False) for i, is_special in special.items()]
    )
    roles = _special_tokens(gguf, tokens)
    _add_bos(tokenizer, gguf, roles, tokens)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=gguf.count("context_length", 2**31 - 1),
        clean_up_tokenization_spaces=False,
        **roles,
    )
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        result.chat_template = template
    return result


def _vocabulary(gguf: GgufFile) -> tuple[list[str], list[int]]:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{gguf.path}: the GGUF file holds no vocabulary (tokenizer.ggml.tokens)")
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    types = [1] * len(tokens) if types is None else [int(t) for t in types]
    if len(types) != len(tokens):
        raise ModelError(f"{gguf.path}: {len(tokens)} tokens but {len(types)} token types; fetch the file again")
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{gguf.path}: a token occurs twice in the vocabulary; fetch the file again")
    return tokens, types


def _merges(gguf: GgufFile, tokens: list[str]) -> list[tuple[str, str]]:
    # Checked here because the tokenizers library ends such input with a panic, which is no ordinary exception.
    known = set(tokens)
    merges: list[tuple[str, str]] = []
    raw = gguf.metadata.get("tokenizer.ggml.merges", [])
    for line in raw if isinstance(raw, list) else []:
        left, _, right = line.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise ModelError(f"{gguf.path}: the merge {line[:60]!r} does not fit the vocabulary; fetch the file again")
        merges.append((left, right))
    if not merges:
        raise ModelError(f"{gguf.path}: the GGUF file holds no BPE merges (tokenizer.ggml.merges)")
    return merges


def _set_pipeline(tokenizer: Tokenizer, rule: _Rule) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()


def _special_tokens(gguf: GgufFile, tokens: list[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ModelError(f"{gguf.path}: the {role} token {index!r} is not in the vocabulary of {len(tokens)}")
        roles[f"{role}_token"] = tokens[index]
    # Padding with the token that ends a turn makes real ends look like padding.
    if roles.get("pad_token") == roles.get("eos_token") != _END_OF_TEXT and _END_OF_TEXT in tokens:
        roles["pad_token"] = _END_OF_TEXT
    return roles


def _add_bos(tokenizer: Tokenizer, gguf: GgufFile, roles: dict[str, str], tokens: list[str]) -> None:
    if not gguf.metadata.get("tokenizer.ggml.add_bos_token", False) or "bos_token" not in roles:
        return
    from tokenizers import processors

    bos = roles["bos_token"]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
    )
    tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])


def _through_transformers(gguf: GgufFile) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(gguf.path.parent), gguf_file=gguf.path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the reader raises many kinds; the user needs one
        kind = gguf.metadata.get("tokenizer.ggml.model")
        pre = gguf.metadata.get("tokenizer.ggml.pre")
        raise ModelError(
            f"{gguf.path}: the tokenizer (model {kind!r}, rule {pre!r}) of this GGUF file cannot be read: "
            f"{_first_line(error)}; use the model's safetensors release instead"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
