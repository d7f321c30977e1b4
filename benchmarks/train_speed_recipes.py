"""The trainers that are compared, each put together the way its users do it, on the same rows in the same order.

All get ready-made token ids with the loss on the answer only, so every method works on exactly the same tokens. The
tutorial's own tokenizing function differs in one point: it cuts prompt and answer together at 384 tokens and so trains
most long texts on nothing. Here its rows keep their answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_speed_job import TUTORIAL_BATCH, Job, ModelSource, Row

if TYPE_CHECKING:
    from fenlei.config import ModelConfig

_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(job: Job, pace: Any) -> Any:
    """The trainer of a job, ready for ``train()``.

    Args:
        job: what to build.
        pace: the callback that steps it.
    """
    import torch

    torch.manual_seed(job.seed)
    return {"tutorial": _tutorial, "trl": _trl, "fenlei": _fenlei}[job.method](job, pace)


def load_base(source: ModelSource, device: str, dtype: str) -> Any:
    """The base model, as transformers gives it."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    if source.folder is not None:
        model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=getattr(torch, dtype), local_files_only=True)
        return model.to(device)
    config = Qwen2Config(**source.numbers, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)  # the same weights in every process
    with torch.device(device):  # straight onto the GPU: 7 B parameters are filled there in seconds
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def _quantize(model: Any, config: ModelConfig) -> None:
    """4-bit weights, as loading a folder with ``model.quantization`` leaves them.

    Transformers' own steps of loading: PEFT and the trainer look for its marks on the model, not at the layers alone.
    """
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    from fenlei.modeling.loading import _quantized

    told = _quantized(config, model.device, model.dtype)
    quantizer = AutoHfQuantizer.from_config(told["quantization_config"], pre_quantized=False)
    whole = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    model.hf_quantizer = quantizer
    quantizer.preprocess_model(model, device_map=told["device_map"])  # empty 4-bit layers for all but the head
    pack = quantizer.get_quantize_ops()
    for name, layer in model.named_modules():
        linear = whole.pop(name, layer)  # popped, so that its memory is free at once
        if linear is not layer:
            weight = f"{name}.weight"
            layer.weight = pack.convert({weight: linear.weight.data}, model=model, full_layer_name=weight)[weight]
            layer.bias = linear.bias
    quantizer.postprocess_model(model)
    for module in model.eval().modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # as load_model does


def _columns(rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Rows with the prompt masked out of the loss, as the tutorial's tokenizing function makes them."""
    return [
        {
            "input_ids": row.input_ids,
            "attention_mask": [1] * len(row.input_ids),
            "labels": [-100] * row.answer_start + row.input_ids[row.answer_start :],
        }
        for row in rows
    ]


def _tokenizer(job: Job) -> Any:
    """The model's tokenizer; collators need it for its padding token. Random rows get one that knows nothing else."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if job.model.folder is not None and job.pad_id != 0:
        return AutoTokenizer.from_pretrained(job.model.folder, local_files_only=True)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "<eos>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _arguments(job: Job, micro_batch: int) -> dict[str, Any]:
    """What all trainers are told alike."""
    return {
        "output_dir": job.folder,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": job.batch_size // micro_batch,
        "max_steps": job.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "train_sampling_strategy": "sequential",
        "seed": job.seed,
    }


def _peft_config(*, alpha: int, dropout: float) -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=_LORA_TARGETS,
        inference_mode=False,
        r=8,
        lora_alpha=alpha,
        lora_dropout=dropout,
    )


def _tutorial(job: Job, pace: Any) -> Any:
    """The tutorial's script in today's transformers: rows padded by four, logits for every position."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    checkpointing = job.settings.get("checkpointing", True)
    model = load_base(job.model, job.device, job.dtype)
    if checkpointing:
        model.enable_input_require_grads()
    import torch

    torch.manual_seed(job.seed)
    model = get_peft_model(model, _peft_config(alpha=32, dropout=job.settings.get("dropout", 0.1)))
    return Trainer(
        model=model,
        args=TrainingArguments(
            **_arguments(job, min(job.settings.get("micro_batch", TUTORIAL_BATCH), job.batch_size)),
            learning_rate=job.settings.get("learning_rate", 1e-4),
            gradient_checkpointing=checkpointing,
        ),
        train_dataset=_columns(job.rows()),
        data_collator=DataCollatorForSeq2Seq(tokenizer=_tokenizer(job), padding=True),
        callbacks=[pace],
    )


def _trl(job: Job, pace: Any) -> Any:
    """TRL's SFTTrainer: its fused language-model head, no checkpointing, no dropout, loss on the answer only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = job.settings
    rows = [{key: row[key] for key in ("input_ids", "labels")} for row in _columns(job.rows())]
    return SFTTrainer(
        model=load_base(job.model, job.device, job.dtype),
        args=SFTConfig(
            **_arguments(job, min(settings["micro_batch"], job.batch_size)),
            learning_rate=settings.get("learning_rate", 1e-4),
            gradient_checkpointing=False,
            bf16=job.dtype == "bfloat16" and settings.get("autocast", True),
            padding_free=settings.get("padding_free", False),
            max_length=None,  # the rows are cut already
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(job),
        peft_config=_peft_config(alpha=16, dropout=0.0),
        callbacks=[pace],
    )


def _fenlei(job: Job, pace: Any) -> Any:
    """This package's own trainer, put together as a run does it."""
    import torch
    from torch.utils.data import SequentialSampler

    from fenlei.config import RunConfig
    from fenlei.modeling.adapter import add_adapter
    from fenlei.modeling.loading import load_model, pick_device
    from fenlei.modeling.memory import checkpoint_activations
    from fenlei.training.checkpoints import CheckpointStore
    from fenlei.training.dataset import TrainingRow, TrainingSet
    from fenlei.training.engine import TrainingEngine
    from fenlei.training.trainer import ClassifierTrainer, training_arguments

    config = RunConfig.build(
        {"model": {"device": job.device, "dtype": job.dtype}, "train": {"batch_size": job.batch_size}}
    )
    config = config.with_values(job.settings.get("config", {}))
    config = config.with_values({"train": {"max_steps": job.steps, "logging_steps": 1, "seed": job.seed}})
    if job.model.folder is not None:
        base = load_model(job.model.folder, config.model)
    else:
        base = load_base(job.model, job.device, job.dtype).requires_grad_(False).eval()
        if config.model.quantization != "none":
            _quantize(base, config.model)
        base.config.use_cache = False
    if config.train.gradient_checkpointing:
        checkpoint_activations(base)
    model = add_adapter(base, config.lora, job.seed)
    rows = [TrainingRow(row.input_ids, row.answer_start) for row in job.rows()]
    engine = TrainingEngine(model, config, job.pad_id, say=lambda line: print(line, file=sys.stderr))
    engine.fit(rows)
    folder = Path(job.folder)

    class SameOrder(ClassifierTrainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler[int]:
            return SequentialSampler(rows)

    return SameOrder(
        model=model,
        args=training_arguments(config, folder, pick_device(config.model)),
        train_dataset=TrainingSet(rows, list(range(len(rows))), 0),
        data_collator=lambda batch: {"rows": batch},
        callbacks=[pace],
        engine=engine,
        store=CheckpointStore(folder / "checkpoints", 1),
        score_dev=None,
    )
