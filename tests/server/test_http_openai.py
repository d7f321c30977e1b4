"""OpenAI's own client against the server, over a socket; fake classifiers."""

from __future__ import annotations

import math

import openai
import pytest

from tests.server.fake import MOOD, NEWS
from tests.server.process import PATIENCE_S, Server

TEXT = "国足今晚迎战韩国队"
USER = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(["news"], hold=tmp_path_factory.mktemp("hold") / "hold") as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def probabilities(server):
    """What fenlei's own route says of the text."""
    with server.client() as plain:
        return plain.post("/v1/classify", json={"text": TEXT}).json()["results"][0]["probabilities"]


class TestChat:
    def test_the_label_is_the_answer(self, client, probabilities):
        found = client.chat.completions.create(model="news", messages=USER)
        assert found.object == "chat.completion"
        assert found.model == "news"
        (choice,) = found.choices
        assert (choice.message.role, choice.message.content) == ("assistant", next(iter(probabilities)))
        assert choice.finish_reason == "stop"
        assert choice.logprobs is None
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(TEXT.encode()), 1)
        assert found.usage.total_tokens == len(TEXT.encode()) + 1
        best = max(probabilities.values())
        assert choice.fenlei == {"probability": best, "confidence": best, "abstained": best < 0.5, "truncated": False}

    def test_logprobs(self, client, probabilities):
        found = client.chat.completions.create(model="news", messages=USER, logprobs=True, top_logprobs=20)
        (token,) = found.choices[0].logprobs.content
        assert token.token == found.choices[0].message.content
        assert bytes(token.bytes).decode() == token.token
        assert {t.token: t.logprob for t in token.top_logprobs} == pytest.approx(
            {label: math.log(p) for label, p in probabilities.items()}
        )
        assert [t.token for t in token.top_logprobs] == list(probabilities)
        few = client.chat.completions.create(model="news", messages=USER, logprobs=True, top_logprobs=2)
        assert few.choices[0].logprobs.content[0].top_logprobs == token.top_logprobs[:2]
        none = client.chat.completions.create(model="news", messages=USER, logprobs=True)
        assert none.choices[0].logprobs.content[0].top_logprobs == []
        assert none.choices[0].logprobs.content[0].logprob == token.logprob

    def test_the_last_user_message_counts(self, client):
        talk = [
            {"role": "system", "content": "You are a pirate."},
            {"role": "user", "content": "something else"},
            {"role": "assistant", "content": "财经"},
            {"role": "user", "content": [{"type": "text", "text": TEXT[:4]}, {"type": "text", "text": TEXT[4:]}]},
            {"role": "assistant", "content": "not asked"},
        ]
        long = client.chat.completions.create(model="news", messages=talk, logprobs=True)
        short = client.chat.completions.create(model="news", messages=USER, logprobs=True)
        assert long.choices == short.choices
        assert long.usage == short.usage

    def test_streamed(self, client):
        whole = client.chat.completions.create(model="news", messages=USER, logprobs=True, top_logprobs=3)
        chunks = list(
            client.chat.completions.create(model="news", messages=USER, logprobs=True, top_logprobs=3, stream=True)
        )
        assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
        assert [c.choices[0].finish_reason for c in chunks] == [None, "stop"]
        assert chunks[0].choices[0].logprobs.model_dump() == whole.choices[0].logprobs.model_dump()
        assert len({chunk.id for chunk in chunks}) == 1

    def test_streamed_with_usage(self, client):
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(model="news", messages=USER, stream=True, stream_options=options))
        assert [chunk.usage is None for chunk in chunks] == [True, True, False]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 1

    def test_parameters_without_a_meaning_here(self, client):
        plain = client.chat.completions.create(model="news", messages=USER)
        more = client.chat.completions.create(
            model="news", messages=USER, temperature=1.5, top_p=0.1, max_tokens=1, max_completion_tokens=2, seed=7,
            presence_penalty=1, frequency_penalty=1, stop=["\n"], user="someone", n=1, logit_bias={"50256": -100},
            response_format={"type": "text"}, metadata={"a": "b"}, tools=[], tool_choice="none",
        )  # fmt: skip
        assert more.choices == plain.choices

    def test_own_parameters(self, client):
        body = {"candidates": ["财经", "科技"], "threshold": 1}
        found = client.chat.completions.create(
            model="news", messages=USER, logprobs=True, top_logprobs=5, extra_body=body
        )
        assert {t.token for t in found.choices[0].logprobs.content[0].top_logprobs} == {"财经", "科技"}
        assert found.choices[0].fenlei["abstained"] is True
        assert found.choices[0].message.content in {"财经", "科技"}

    def test_another_model(self, client):
        assert client.chat.completions.create(model="mood", messages=USER).choices[0].message.content in MOOD

    def test_errors_are_the_clients_own(self, client):
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=USER)
        assert missing.value.code == "model_not_found"
        assert missing.value.param == "model"
        with pytest.raises(openai.UnprocessableEntityError) as wrong:
            client.chat.completions.create(model="news", messages=USER, n=3)
        assert wrong.value.type == "invalid_request_error"
        with pytest.raises(openai.UnprocessableEntityError):
            list(
                client.chat.completions.create(
                    model="news", messages=USER, stream=True, extra_body={"candidates": ["x"]}
                )
            )


class TestCompletions:
    def test_one_prompt(self, client, probabilities):
        found = client.completions.create(model="news", prompt=TEXT, logprobs=2, max_tokens=5)
        (choice,) = found.choices
        assert (found.object, choice.text, choice.finish_reason) == (
            "text_completion",
            next(iter(probabilities)),
            "stop",
        )
        best = list(probabilities.items())[:2]
        assert choice.logprobs.tokens == [choice.text]
        assert choice.logprobs.text_offset == [0]
        assert choice.logprobs.token_logprobs == pytest.approx([math.log(best[0][1])])
        assert choice.logprobs.top_logprobs[0] == pytest.approx({label: math.log(p) for label, p in best})

    def test_several_prompts(self, client):
        prompts = [f"第{n}条" for n in range(8)]
        found = client.completions.create(model="news", prompt=prompts)
        assert [choice.index for choice in found.choices] == list(range(8))
        alone = [client.completions.create(model="news", prompt=prompt).choices[0].text for prompt in prompts]
        assert [choice.text for choice in found.choices] == alone
        assert found.usage.completion_tokens == 8
        assert set(alone) <= set(NEWS)

    def test_streamed(self, client):
        prompts = [TEXT, "b"]
        whole = client.completions.create(model="news", prompt=prompts, logprobs=1)
        chunks = list(client.completions.create(model="news", prompt=prompts, logprobs=1, stream=True))
        assert [choice for chunk in chunks for choice in chunk.choices] == whole.choices


def test_models(client):
    assert [model.id for model in client.models.list()] == ["news", "mood"]
    assert client.models.retrieve("mood").labels == list(MOOD)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_probability_of_zero():
    """Its logarithm is no JSON number; OpenAI sends -9999."""
    from fenlei.server.routes_openai import _log

    assert _log(0.0) == -9999.0
    assert _log(1.0) == 0.0
