"""From examples to labels with probabilities: used for dev scores, evaluation, prediction and serving alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fenlei.data.example import Example
from fenlei.errors import ModelError
from fenlei.modeling.prediction import Prediction
from fenlei.modeling.scoring import CandidateScorer, ScoreRequest, probabilities
from fenlei.prompting import EncodedPrompt, PromptEncoder

if TYPE_CHECKING:
    import numpy as np


class Predictor:
    """A model, an encoder and a temperature.

    Args:
        model: causal language model, with or without adapter.
        encoder: the encoder that the model was trained with.
        pad_id: padding token.
        temperature: scores are divided by it before the softmax.
        batch_tokens: most tokens in one forward pass.
    """

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        *,
        pad_id: int,
        temperature: float = 1.0,
        batch_tokens: int | None = None,
    ) -> None:
        self.encoder = encoder
        self.temperature = temperature
        self._scorer = CandidateScorer(model, pad_id, batch_tokens)

    def predict(
        self,
        examples: Sequence[Example],
        *,
        candidates: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Classifies examples, each among its own candidates by the run's rule; order is kept.

        Args:
            examples: rows; labels, if any, are not looked at.
            candidates: choose among these for every row, whatever the rule says.
            progress: called with the number of rows done after each batch.
        """
        if candidates is None:
            prompts = [self.encoder.encode_example(example) for example in examples]
        else:
            prompts = [self.encoder.encode(example.text, candidates) for example in examples]
        requests = [self._request(prompt) for prompt in prompts]
        scores = self._scorer.score(requests, progress=progress)
        return [self._prediction(p, s) for p, s in zip(prompts, scores, strict=True)]

    def _request(self, prompt: EncodedPrompt) -> ScoreRequest:
        answers = tuple(self.encoder.answer_ids(name) for name in prompt.candidates)
        return ScoreRequest(prompt.input_ids, answers)

    def _prediction(self, prompt: EncodedPrompt, scores: np.ndarray) -> Prediction:
        if not all(map(math.isfinite, scores)):
            raise ModelError(
                "the model's scores are not finite numbers, so there is no answer to give; "
                "model.dtype=bfloat16 or float32 is the usual cure, float16 the usual cause"
            )
        p = probabilities(scores, self.temperature)
        best = int(p.argmax())
        return Prediction(
            label=prompt.candidates[best],
            probability=float(p[best]),
            probabilities={n: float(v) for n, v in zip(prompt.candidates, p, strict=True)},
            scores={n: float(v) for n, v in zip(prompt.candidates, scores, strict=True)},
            abstained=False,
            truncated=prompt.truncated,
        )
