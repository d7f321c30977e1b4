"""A converted GGUF file is the model that it was made from."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fenlei.errors import ModelError
from fenlei.modeling.sources import gguf_convert, gguf_names
from fenlei.modeling.sources.folder import check_model_folder
from fenlei.modeling.sources.gguf_convert import convert_gguf
from fenlei.modeling.sources.gguf_file import read_gguf
from tests.modeling.sources.tiny import TEMPLATE, gguf_name, tiny_model, vocabulary, write_gguf

IDS = torch.arange(3, 200, 7)[None]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def converted(path, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(path, out)
    check_model_folder(out)
    return out


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def rounded(model):
    """The reference with its weights rounded to bfloat16, as they are stored."""
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.to(torch.bfloat16).float())
    return model


@pytest.mark.parametrize("arch", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_same_logits_as_the_original(arch, tied, tmp_path):
    model = tiny_model(arch, tied=tied)
    out = converted(write_gguf(tmp_path / "m.gguf", model), tmp_path)
    assert torch.equal(logits(load(out)), logits(rounded(model)))
    names = {n for n in gguf_reader_names(out)}
    assert ("lm_head.weight" in names) is not tied


def gguf_reader_names(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_without_the_row_order_llama_is_wrong(tmp_path, monkeypatch):
    """Control: the guard is what makes the test above pass."""
    monkeypatch.setattr(gguf_convert, "row_order", lambda *_: None)
    model = tiny_model("llama")
    out = converted(write_gguf(tmp_path / "m.gguf", model), tmp_path)
    assert (logits(load(out)) - logits(rounded(model))).abs().max() > 0.01


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_quantised_weights_equal_transformers_own_reader(arch, tmp_path):
    def kind(name):
        return gguf.GGMLQuantizationType.Q8_0 if "attn" in name else gguf.GGMLQuantizationType.Q5_0

    path = write_gguf(tmp_path / "m.gguf", tiny_model(arch), quant=kind)
    out = converted(path, tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    gguf_convert.convert_through_transformers(read_gguf(path), theirs)
    ours, reference = load(out).state_dict(), load(theirs).state_dict()
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in ours)


def test_of_a_matrix_stored_twice_the_precise_copy_is_kept(tmp_path):
    kinds = {"token_embd.weight": gguf.GGMLQuantizationType.Q4_0, "output.weight": gguf.GGMLQuantizationType.Q8_0}
    model = tiny_model("qwen2")
    out = converted(write_gguf(tmp_path / "m.gguf", model, output="twice", quant=kinds.get), tmp_path)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in gguf_reader_names(out)
    kept = load(out).get_input_embeddings().weight
    wanted = model.get_input_embeddings().weight
    assert (kept - wanted).norm() / wanted.norm() < 0.01  # 8 bits; 4 bits would be off by 0.08


def test_llama3_rotary_scaling_is_recovered(tmp_path):
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_model("llama", rope_scaling=rope)
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    add = {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    assert add["rope_freqs.weight"].max() > 30
    out = converted(write_gguf(tmp_path / "m.gguf", model, add=add), tmp_path)
    assert torch.allclose(logits(load(out)), logits(rounded(model)), atol=1e-4)

    wrong = {"rope_freqs.weight": np.linspace(1, 5, 8, dtype=np.float32)}
    with pytest.raises(ModelError, match="rotary scaling"):
        convert_gguf(write_gguf(tmp_path / "w.gguf", model, add=wrong), out)


def test_shards_and_chunks_do_not_change_a_bit(tmp_path, monkeypatch):
    model = tiny_model("qwen2")
    path = write_gguf(tmp_path / "m.gguf", model)
    monkeypatch.setattr(gguf_convert, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(gguf_convert, "_CHUNK_VALUES", 1000)
    done = []
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(path, out, advance=done.append)
    check_model_folder(out)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert not (out / "model.safetensors").exists()
    assert torch.equal(logits(load(out)), logits(rounded(model)))
    assert sum(done) == sum(t.nbytes for t in read_gguf(path).tensors.values())


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_tokenizer(arch, tmp_path):
    out = converted(write_gguf(tmp_path / "m.gguf", tiny_model(arch)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    words, types, _ = vocabulary()
    assert tokenizer.encode("<|im_start|>") == [words.index("<|im_start|>")]
    assert tokenizer.encode("<tool_call>") == [words.index("<tool_call>")]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) == sum(t != 5 for t in types)  # unused entries are padding of the embedding matrix
    assert "1" in tokenizer.tokenize("12")  # digits one by one, although a merge exists
    assert "Ġthe" in tokenizer.tokenize("on the")
    for text in ("你好，世界！2024年 10%", "  two  spaces\r\n\ttab", "emoji 🎉 \u2028 end", "naïve"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template == TEMPLATE
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).endswith("assistant\n")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [words.index("<|im_end|>"), words.index("<|endoftext|>")]


def test_qwen_normalises_to_nfc_and_others_do_not(tmp_path):
    decomposed, composed = "e\u0301", "\u00e9"
    for arch, same in (("qwen2", True), ("llama", False)):
        (tmp_path / arch).mkdir()
        out = converted(write_gguf(tmp_path / f"{arch}.gguf", tiny_model(arch)), tmp_path / arch)
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert (tokenizer.encode(decomposed) == tokenizer.encode(composed)) is same


def test_unknown_architecture_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("qwen2"), arch="mystery9")
    with pytest.raises(ModelError, match="'mystery9'"):
        converted(path, tmp_path)


def test_missing_extra_and_misshapen_tensors(tmp_path):
    model = tiny_model("qwen2")
    cases = {
        "blk.1.ffn_up.weight": write_gguf(tmp_path / "a.gguf", model, drop=("blk.1.ffn_up.weight",)),
        "up_proj": write_gguf(tmp_path / "b.gguf", model, extra={"qwen2.feed_forward_length": 96}),
        "expert": write_gguf(tmp_path / "c.gguf", model, add={"blk.0.ffn_expert.weight": np.zeros(4, np.float32)}),
    }
    for _, path in cases.items():
        with pytest.raises(ModelError):
            convert_gguf(path, tmp_path)


def test_values_that_are_not_finite_are_named(tmp_path):
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    path = write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight.*not finite"):
        converted(path, tmp_path)


@pytest.mark.parametrize(
    "tokens",
    [
        (vocabulary()[0], vocabulary()[1][:-1], vocabulary()[2]),
        (vocabulary()[0], vocabulary()[1], ["zz qq"]),
        (["a", *vocabulary()[0][1:]], vocabulary()[1], vocabulary()[2]),
        (vocabulary()[0] + ["more"], vocabulary()[1] + [1], vocabulary()[2]),
    ],
    ids=["types", "merge", "twice", "too-many"],
)
def test_damaged_vocabularies(tokens, tmp_path):
    with pytest.raises(ModelError, match=r"m\.gguf"):
        converted(write_gguf(tmp_path / "m.gguf", tiny_model("qwen2"), tokens=tokens), tmp_path)


def starcoder2(path):
    """An architecture that only transformers' reader knows here."""
    from transformers import AutoConfig

    words, types, merges = vocabulary()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "starcoder2",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = rounded(AutoModelForCausalLM.from_config(config).eval())
    writer = gguf.GGUFWriter(str(path), "starcoder2")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_eps(config.norm_epsilon)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("starcoder")
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(words.index("<|endoftext|>"))
    writer.add_eos_token_id(words.index("<|im_end|>"))
    writer.add_unk_token_id(words.index("<|endoftext|>"))
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        name = name.replace("mlp.c_fc", "mlp.up_proj").replace("mlp.c_proj", "mlp.down_proj")
        target = gguf_name(name) if name != "model.norm.bias" else "output_norm.bias"
        writer.add_tensor(target, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def test_other_architectures_go_through_transformers(tmp_path):
    path, model = starcoder2(tmp_path / "m.gguf")
    out = converted(path, tmp_path)
    assert torch.equal(logits(load(out)), logits(model))
    assert AutoTokenizer.from_pretrained(out).encode("<|im_start|>") == [vocabulary()[0].index("<|im_start|>")]


def test_random_filling_of_missing_tensors_is_refused(tmp_path):
    path, _ = starcoder2(tmp_path / "m.gguf")
    data = path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"lacks 1 tensors|cannot be read"):
        converted(path, tmp_path)


def test_plausibility_guard_before_transformers_builds_a_giant(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("qwen2"), arch="starcoder2")
    data = bytearray(path.read_bytes())
    at = data.index(b"starcoder2.feed_forward_length") + len(b"starcoder2.feed_forward_length") + 4
    data[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="feed_forward_length"):
        converted(path, tmp_path)


def test_the_shortest_decimal_is_taken():
    assert gguf_names._shortest(float(np.float32(1e-6))) == 1e-6
