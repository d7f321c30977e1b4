"""Several classifiers on one copy of the base weights: each answers as if it were alone."""

from __future__ import annotations

import gc
import json
import re
import shutil
import threading
import weakref

import numpy as np
import pytest
import torch

from fenlei import TextClassifier
from fenlei.artifact import ADAPTER, MANIFEST, sha256_of
from fenlei.errors import ArtifactError, ConfigError, FenleiError
from fenlei.modeling.shared import SharedBase
from fenlei.server.models import Models, UnknownModel, default_name
from tests.server.made import MOOD, NEWS, ON_CPU, build, examples

ROWS = examples(9, seed=5)


def answers(classifier, rows=ROWS):
    return np.array([list(p.probabilities.values()) for p in classifier.classify(rows)])


def alone(folder, *overrides):
    return answers(TextClassifier.load(folder, overrides=[*ON_CPU, *overrides]))


def opened(*runs, overrides=ON_CPU, **more):
    return Models.open(list(runs), overrides=overrides, **more)


def tensors(models):
    """Every parameter of all classifiers, by address."""
    found = {}
    for name in models.names():
        for key, p in models.get(name).classifier.predictor.model.named_parameters():
            found.setdefault(p.data_ptr(), []).append((name, key, p))
    return found


class TestAnswers:
    def test_two_classifiers_answer_as_if_alone_in_turns(self, models, news_folder, mood_folder):
        expected = {"news": alone(news_folder), "mood": alone(mood_folder)}
        for name in ("news", "mood", "news", "mood", "mood", "news"):
            assert np.abs(answers(models.get(name).classifier) - expected[name]).max() <= 1e-5
        for i in range(len(ROWS)):  # row by row, in turns
            for name in ("news", "mood"):
                found = answers(models.get(name).classifier, ROWS[i : i + 1])
                assert np.abs(found - expected[name][i]).max() <= 1e-5
        assert models.get("news").classifier.classes_ == list(NEWS)
        assert models.get("mood").classifier.classes_ == list(MOOD)

    def test_adapters_that_are_not_kept_apart_are_seen(self, monkeypatch, news_folder, mood_folder):
        """Negative control: one model for both, so that the second adapter is put upon the first."""
        monkeypatch.setattr(SharedBase, "view", lambda self: self.model)
        mixed = opened(("news", news_folder), ("mood", mood_folder))
        assert np.abs(answers(mixed.get("mood").classifier) - alone(mood_folder)).max() > 1e-3
        mixed.close()

    def test_the_adapters_matter(self, models, tiny_folder, tmp_path):
        """Negative control: without its adapter, a classifier answers otherwise."""
        classifier = models.get("mood").classifier
        with classifier.predictor.model.disable_adapter():
            plain = answers(classifier)
        assert np.abs(answers(classifier) - plain).max() > 1e-2

    @pytest.mark.parametrize("method", ["rslora", "dora", "pissa"])
    def test_other_methods_share_too(self, method, news_folder, tiny_folder, tmp_path):
        folder = build(tmp_path / method, tiny_folder, MOOD, seed=3, r=4, method=method, layers="1-1")
        expected = {"news": alone(news_folder), method: alone(folder)}
        models = opened(("news", news_folder), (method, folder))
        for name in (method, "news", method):
            assert np.abs(answers(models.get(name).classifier) - expected[name]).max() <= 1e-5
        models.close()

    @pytest.mark.parametrize("way", ["inference.packed=false", "inference.fused=false", "inference.strict=true"])
    def test_other_ways_of_scoring(self, way, news_folder, mood_folder):
        models = opened(("news", news_folder), ("mood", mood_folder), overrides=[*ON_CPU, way])
        for name, folder in (("mood", mood_folder), ("news", news_folder), ("mood", mood_folder)):
            assert np.abs(answers(models.get(name).classifier) - alone(folder, way)).max() <= 1e-5
        models.close()

    def test_a_computed_beginning_is_kept_from_the_start(self, models, monkeypatch):
        from fenlei.modeling.scoring_packed import PackedScorer

        computed = []
        original = PackedScorer.keys_and_values

        def counted(self, prefix):
            computed.append(len(prefix))
            return original(self, prefix)

        monkeypatch.setattr(PackedScorer, "keys_and_values", counted)
        for name in ("news", "mood", "news", "mood"):
            models.get(name).classifier.classify(ROWS)
        assert not computed
        models.get("news").classifier.classify(ROWS, candidates=NEWS[:2])
        assert len(computed) == 1, "other candidates are another beginning"


class TestMemory:
    def test_base_weights_are_there_once(self, models):
        shared = {name for users in tensors(models).values() if len(users) > 1 for _, name, _ in users}
        for name in ("news", "mood"):
            for key, p in models.get(name).classifier.predictor.model.named_parameters():
                assert ("lora_" in key) != (key in shared), key
                assert not p.requires_grad
        total = sum(users[0][2].numel() for users in tensors(models).values())
        base = sum(p.numel() for p in models._base.model.parameters())
        lora = sum(
            p.numel()
            for name in ("news", "mood")
            for key, p in models.get(name).classifier.predictor.model.named_parameters()
            if "lora_" in key
        )
        assert total == base + lora

    def test_the_same_tokenizer_is_there_once(self, models, news_folder, mood_folder, tmp_path):
        news, mood = (models.get(name).classifier.predictor.encoder for name in models.names())
        assert news.plain is mood.plain
        assert news._tokenizer is mood._tokenizer
        assert news.labels != mood.labels
        other = tmp_path / "other"
        shutil.copytree(mood_folder, other)
        rewrite(other, "tokenizer/tokenizer_config.json", fresh=True)
        encoder = models.add("other", other).classifier.predictor.encoder
        assert encoder.plain is not mood.plain
        assert encoder._tokenizer is not mood._tokenizer

    def test_a_removed_classifier_frees_its_adapter_at_once(self, models):
        before = sum(users[0][2].numel() for users in tensors(models).values())
        classifier = models.get("mood").classifier
        gone = [weakref.ref(p) for key, p in classifier.predictor.model.named_parameters() if "lora_" in key]
        base = [weakref.ref(p) for p in models._base.model.parameters()]
        classifier.classify(ROWS, candidates=MOOD[:2])
        gc.collect()
        gc.disable()
        try:
            models.remove("mood")
            assert all(ref() is not None for ref in gone), "still in use"
            del classifier
            assert all(ref() is None for ref in gone)
        finally:
            gc.enable()
        assert all(ref() is not None for ref in base)
        assert sum(users[0][2].numel() for users in tensors(models).values()) < before

    def test_memory_that_is_held_is_seen(self, models, monkeypatch):
        """Negative control: without undoing the circles of references, an adapter waits for the collector."""
        monkeypatch.setattr("fenlei.modeling.shared.release", lambda model: None)
        models.add("again", models.get("mood").classifier._folder)
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
        gone = weakref.ref(models.get("again").classifier.predictor.model.get_parameter(key))
        gc.collect()
        gc.disable()
        try:
            models.remove("again")
            assert gone() is not None
        finally:
            gc.enable()
        gc.collect()
        assert gone() is None

    def test_who_still_has_a_removed_classifier_is_answered(self, models, mood_folder):
        served = models.get("mood")
        models.remove("mood")
        assert np.abs(answers(served.classifier) - alone(mood_folder)).max() <= 1e-5
        classifier = served.classifier
        del served
        assert np.abs(answers(classifier) - alone(mood_folder)).max() <= 1e-5

    def test_beginnings_share_one_budget(self, models):
        def budgets():
            return [models.get(n).classifier.predictor._scorer._packed.prefixes.most_bytes for n in models.names()]

        assert budgets() == [256 << 20] * 2
        models.remove("mood")
        assert budgets() == [512 << 20]


class TestNames:
    def test_the_first_one_answers_by_default(self, models):
        assert models.names() == ["news", "mood"]
        assert models.get(None) is models.get("news")
        models.remove("news")
        assert models.get().name == "mood"

    def test_unknown_names_are_told_the_known_ones(self, models):
        with pytest.raises(UnknownModel, match=r"'sport'; there are: news, mood"):
            models.get("sport")
        with pytest.raises(UnknownModel, match="there are: news, mood"):
            models.remove("sport")

    def test_the_last_one_stays(self, models):
        models.remove("news")
        with pytest.raises(ConfigError, match="'mood' is the only classifier"):
            models.remove("mood")
        assert models.names() == ["mood"]

    @pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a b", "体育", "x" * 65, "a\n"])
    def test_bad_names(self, models, mood_folder, name):
        with pytest.raises(ConfigError, match="cannot be a classifier's name"):
            models.add(name, mood_folder)
        assert models.names() == ["news", "mood"]

    def test_a_taken_name(self, models, mood_folder):
        with pytest.raises(ConfigError, match="'news' is taken"):
            models.add("news", mood_folder)
        first, second = mood_folder.parent / "first", mood_folder.parent / "second"
        message = f"{second}: the name 'x' is taken by {first}; give it another one: NAME={second}"
        with pytest.raises(ConfigError, match=re.escape(message)):
            opened(("x", first), ("x", second))

    def test_names_from_folders(self, tmp_path):
        run = tmp_path / "my run"
        (run / "classifier").mkdir(parents=True)
        assert default_name(run / "classifier") == "classifier"
        (run / "classifier" / MANIFEST).write_text("{}", encoding="utf-8")
        assert default_name(run / "classifier") == "my-run"
        assert default_name(run) == "my-run"
        assert default_name(tmp_path / "新闻") == "classifier"
        assert default_name(tmp_path / "..a..") == "a"

    def test_a_folder_gives_the_name(self, news_folder):
        models = opened((None, news_folder))
        assert models.names() == ["news"]
        models.close()
        with pytest.raises(ConfigError, match="no classifier to serve"):
            opened()


class TestHotChanges:
    def test_added_while_another_one_answers(self, news_folder, mood_folder):
        models = opened(("news", news_folder))
        expected, found, end = alone(news_folder), [], threading.Event()

        def ask():
            while not end.is_set():
                found.append(models.on_scoring_thread(lambda: answers(models.get("news").classifier)))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            served = models.add("mood", mood_folder)
        finally:
            end.set()
            thread.join()
        assert found
        assert all(np.abs(one - expected).max() <= 1e-5 for one in found)
        assert models.get("mood") is served
        assert np.abs(answers(served.classifier) - alone(mood_folder)).max() <= 1e-5
        models.close()

    def test_first_passes_are_made_on_the_scoring_thread(self, models, mood_folder, monkeypatch):
        from fenlei.inference.predictor import Predictor

        threads = []
        original = Predictor.score

        def noted(self, *args, **kwargs):
            threads.append(threading.current_thread().name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Predictor, "score", noted)
        models.add("again", mood_folder)
        assert threads == ["fenlei-score_0"]

    def test_one_that_fails_leaves_nothing_behind(self, models, mood_folder, tmp_path):
        with pytest.raises(ArtifactError, match="neither a run folder"):
            models.add("more", tmp_path)
        assert models.names() == ["news", "mood"]
        assert models.add("more", mood_folder).name == "more"

    def test_created_is_when_it_was_saved(self, models, mood_folder):
        from datetime import datetime

        saved = json.loads((mood_folder / MANIFEST).read_text("utf-8"))["created"]
        assert models.get("mood").created == int(datetime.fromisoformat(saved).timestamp())


def rewrite(folder, part, **changes):
    """Changes values of a JSON file in a classifier folder, and the manifest accordingly."""
    path = folder / part
    values = json.loads(path.read_text("utf-8"))
    if part == MANIFEST:
        values["base_model"].update(changes)
    else:
        values.update(changes)
    path.write_text(json.dumps(values), encoding="utf-8")
    if part != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        manifest["files"][part] = sha256_of(path)
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


class TestRefused:
    def test_another_base_model(self, models, tiny_folder, tmp_path):
        other = tmp_path / "other-base"
        shutil.copytree(tiny_folder, other)
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            model.model.norm.weight += 0.1
        model.save_pretrained(other)
        folder = build(tmp_path / "elsewhere", other, MOOD, seed=2)
        with pytest.raises(ArtifactError, match=r"trained on .*other-base \(sha256 .*in memory is .*of its own"):
            models.add("elsewhere", folder)
        with pytest.raises(ArtifactError, match="in memory is"):
            opened((None, models.get("mood").classifier._folder), (None, folder))
        assert models.names() == ["news", "mood"]

    def test_another_number_format(self, models, tiny_folder, tmp_path):
        folder = build(tmp_path / "half", tiny_folder, MOOD, seed=2, dtype="bfloat16")
        with pytest.raises(ArtifactError, match="model.dtype=bfloat16, not float32"):
            models.add("half", folder)

    def test_where_the_processor_does_not_compute_in_bfloat16(self, tiny_folder, tmp_path, monkeypatch):
        """A classifier that was trained in whatever the device does best, the default, does so everywhere."""
        folder = build(tmp_path / "half", tiny_folder, MOOD, seed=2, dtype="auto")
        formats = {}
        for native in (True, False):
            monkeypatch.setattr("fenlei.modeling.loading._cpu_has_bfloat16", lambda native=native: native)
            found = TextClassifier.load(folder, overrides=ON_CPU)
            formats[native] = found.predictor.model.dtype
        assert formats == {True: torch.bfloat16, False: torch.float32}
        asked = TextClassifier.load(folder, overrides=[*ON_CPU, "model.dtype=bfloat16"])
        assert asked.predictor.model.dtype == torch.bfloat16, "who asks for it gets it"

    def test_one_setting_for_all_is_the_way_out(self, news_folder, tiny_folder, tmp_path):
        folder = build(tmp_path / "half", tiny_folder, MOOD, seed=2, dtype="bfloat16")
        models = opened(("news", news_folder), ("half", folder), overrides=[*ON_CPU, "model.dtype=float32"])
        assert np.abs(answers(models.get("half").classifier) - alone(folder, "model.dtype=float32")).max() <= 1e-5
        models.close()

    @pytest.mark.parametrize(
        "changes", [{"init_lora_weights": "pissa"}, {"bias": "all"}, {"init_lora_weights": "olora"}]
    )
    def test_adapters_that_write_into_the_base(self, models, mood_folder, tmp_path, changes):
        folder = tmp_path / "writes"
        shutil.copytree(mood_folder, folder)
        rewrite(folder, f"{ADAPTER}/adapter_config.json", **changes)
        expected = answers(models.get("news").classifier)
        with pytest.raises(ArtifactError, match="may change the base model's own weights"):
            models.add("writes", folder)
        assert (answers(models.get("news").classifier) == expected).all()

    def test_what_the_guard_is_for(self, models, mood_folder, tmp_path, monkeypatch):
        """Negative control: without it, such an adapter changes the answers of a classifier beside it."""
        folder = tmp_path / "writes"
        shutil.copytree(mood_folder, folder)
        rewrite(folder, f"{ADAPTER}/adapter_config.json", init_lora_weights="pissa")
        expected = answers(models.get("news").classifier)
        monkeypatch.setattr("fenlei.modeling.shared.require_frozen_base", lambda folder: None)
        models.add("writes", folder)
        assert np.abs(answers(models.get("news").classifier) - expected).max() > 1e-4

    def test_a_whole_model_is_served_alone(self, news_folder, tiny_folder, tmp_path):
        folder = build(tmp_path / "whole", tiny_folder, MOOD, seed=4, method="full")
        models = opened(("whole", folder))
        assert np.abs(answers(models.get("whole").classifier) - alone(folder)).max() <= 1e-5
        with pytest.raises(ConfigError, match=r"'whole'.* has a model of its own .*a server of its own"):
            models.add("news", news_folder)
        assert models.names() == ["whole"]
        models.close()
        with pytest.raises(ArtifactError, match=r"lora.method=full.*a server of its own"):
            opened(("news", news_folder), ("whole", folder))

    def test_an_unknown_base_is_not_shared(self, news_folder, mood_folder, tmp_path):
        folder = tmp_path / "old"
        shutil.copytree(mood_folder, folder)
        rewrite(folder, MANIFEST, sha256={})
        models = opened(("old", folder))
        assert np.abs(answers(models.get("old").classifier) - alone(mood_folder)).max() <= 1e-5
        models.close()
        with pytest.raises(FenleiError, match="sha256 unknown"):
            opened(("news", news_folder), ("old", folder))
