"""One measured process: loads its classifier, then answers a portion of the rows each time its parent says so.

    python predict_speed_child.py job.json

The line to the parent is that of train_speed_child.py: `ready`, then one `step` (seconds, peak memory, answers, tokens
computed) a word, then `end`. A step is timed from the text to the label: tokenizing is in it, loading is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from predict_speed_job import BATCHED, FENLEI, ONE_BY_ONE, VLLM, PredictJob, Row
from train_speed_child import Clock, StdioTalk, Talk, run_matrix

# the answers to rows, and how many tokens the model's layers computed for them; None: not known
Answer = Callable[[Sequence[Row]], tuple[list[str], int | None]]


class TokenCount:
    """Counts the tokens that a model's layers compute: each enters by the embedding, once in each forward pass.

    Padding counts too, and what rows share counts where it is computed, however many rows look at it.

    Args:
        model: a causal language model, with or without adapter.
    """

    def __init__(self, model: Any) -> None:
        self._tokens = 0
        model.get_input_embeddings().register_forward_pre_hook(self._add)

    def take(self) -> int:
        """The tokens since the last call."""
        found, self._tokens = self._tokens, 0
        return found

    def _add(self, _module: Any, inputs: tuple[Any, ...]) -> None:
        self._tokens += inputs[0].numel()


def run(job: PredictJob, talk: Talk) -> None:
    """Answers under the parent's control."""
    answer, about = {ONE_BY_ONE: _generate, BATCHED: _generate, FENLEI: _fenlei, VLLM: _vllm}[job.method](job)
    clock = Clock(talk, job.device)
    clock.forget()
    talk.send(event="ready", **about, **clock.memory())
    for portion in job.portions():
        if not clock.wait():
            break
        answers, computed = answer(portion)
        clock.stop(answers=answers, computed=computed)
    else:
        talk.receive()  # `end`: a process that is gone before its parent has said so looks like one that failed
    talk.send(event="end", losses=[])


def _fenlei(job: PredictJob) -> tuple[Answer, dict[str, Any]]:
    """This package, as its users call it."""
    from fenlei import TextClassifier
    from fenlei.data import Example

    classifier = TextClassifier.load(
        job.classifier,
        model=job.model.folder,
        overrides=[f"model.device={job.device}", *job.settings.get("overrides", [])],
    )
    codes = classifier.predictor.encoder.codes
    count = TokenCount(classifier.predictor.model)

    def answer(rows: Sequence[Row]) -> tuple[list[str], int]:
        examples = [Example(r.text, candidates=tuple(r.candidates) if r.candidates else None) for r in rows]
        return [codes.get(p.label, p.label) for p in classifier.classify(examples)], count.take()

    return answer, {"inference": classifier.config.inference.model_dump(mode="json")}


def _generate(job: PredictJob) -> tuple[Answer, dict[str, Any]]:
    """The tutorial's way: `generate`, greedy, with the adapter on its base model; one text at a time, or padded left.

    The prompts are this package's, so that all methods answer the same question. In a batch, texts go by length.
    """
    import torch
    from peft import PeftModel
    from predict_speed_rows import load_encoder
    from transformers import AutoModelForCausalLM

    from fenlei.config import ModelConfig
    from fenlei.data import Example

    encoder, tokenizer = load_encoder(Path(job.classifier), ModelConfig())
    base = AutoModelForCausalLM.from_pretrained(job.model.folder, dtype=torch.bfloat16, local_files_only=True)
    model: Any = PeftModel.from_pretrained(base, str(job.adapter)).to(job.device).eval()
    if job.settings.get("merged"):
        model = model.merge_and_unload()
    count, size = TokenCount(model), job.settings.get("batch_size", 1)
    end, pad = encoder.chat.turn_end[-1], int(tokenizer.pad_token_id)

    def one_batch(rows: Sequence[Row], prompts: Sequence[list[int]]) -> list[str]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=job.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=job.device)
        found = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, temperature=None, top_p=None, top_k=None,
            eos_token_id=end, pad_token_id=pad, **_length(job, rows),
        )  # fmt: skip
        return tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)

    def answer(rows: Sequence[Row]) -> tuple[list[str], int]:
        examples = [Example(r.text, candidates=tuple(r.candidates) if r.candidates else None) for r in rows]
        prompts = [encoder.encode_example(example).input_ids for example in examples]
        order = sorted(range(len(rows)), key=lambda i: -len(prompts[i])) if size > 1 else range(len(rows))
        answers = [""] * len(rows)
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            for i, text in zip(chosen, one_batch([rows[i] for i in chosen], [prompts[i] for i in chosen]), strict=True):
                answers[i] = text
        return answers, count.take()

    return answer, {"batch_size": size}


def _length(job: PredictJob, rows: Sequence[Row]) -> dict[str, int]:
    if job.max_new_tokens is not None:
        return {"max_new_tokens": job.max_new_tokens}
    longest = max(row.new_tokens for row in rows)
    return {"max_new_tokens": longest, "min_new_tokens": longest}


def _vllm(job: PredictJob) -> tuple[Answer, dict[str, Any]]:
    """vLLM offline: continuous batches, prefix caching, the adapter unmerged. It gets ready-made token ids."""
    import json

    import vllm
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    rank = json.loads((job.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    longest = max(len(row.prompt) + row.new_tokens for portion in job.portions() for row in portion)
    llm = LLM(
        model=str(job.model.folder),
        tokenizer=str(Path(job.classifier) / "tokenizer"),
        dtype="bfloat16",
        enable_lora=True,
        max_lora_rank=next(r for r in (8, 16, 32, 64, 128, 256) if r >= rank),
        enable_prefix_caching=True,
        max_model_len=longest + (job.max_new_tokens or 0),
        gpu_memory_utilization=job.settings.get("gpu_memory", 0.4),
    )
    adapter = LoRARequest("classifier", 1, str(job.adapter))

    def answer(rows: Sequence[Row]) -> tuple[list[str], int | None]:
        lengths = [
            {"max_tokens": job.max_new_tokens} if job.max_new_tokens is not None
            else {"max_tokens": row.new_tokens, "min_tokens": row.new_tokens, "ignore_eos": True}
            for row in rows
        ]  # fmt: skip
        found = llm.generate(
            [{"prompt_token_ids": row.prompt} for row in rows],
            [SamplingParams(temperature=0.0, **length) for length in lengths],
            lora_request=adapter,
            use_tqdm=False,
        )
        return [f.outputs[0].text for f in found], _computed_by_vllm(found)

    return answer, {"vllm": vllm.__version__}


def _computed_by_vllm(found: Sequence[Any]) -> int | None:
    """Tokens of the prompts that were in no cache, and of the answers but the last one of each, which is only read."""
    cached = [getattr(f, "num_cached_tokens", None) for f in found]  # releases differ in whether they say it
    if None in cached:
        return None
    own = sum(len(f.prompt_token_ids) + len(f.outputs[0].token_ids) - 1 for f in found)
    return own - sum(cached)


def main() -> None:
    talk = StdioTalk()
    job = PredictJob.read(Path(sys.argv[1]))
    if job.method == "matrix":
        run_matrix(job, talk)  # type: ignore[arg-type]
    else:
        run(job, talk)


if __name__ == "__main__":
    main()
