"""From examples to labels with probabilities: used for dev scores, evaluation, prediction and serving alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fenlei.config import InferenceConfig
from fenlei.data.example import Example
from fenlei.errors import ModelError
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import Prediction, make_predictions
from fenlei.modeling.scoring import CandidateScorer, ScoreRequest
from fenlei.prompting import EncodedPrompt, PromptEncoder

if TYPE_CHECKING:
    import numpy as np


class Predictor:
    """A model, an encoder and a calibration.

    Args:
        model: causal language model, with or without adapter.
        encoder: the encoder that the model was trained with.
        pad_id: padding token.
        calibration: what makes probabilities of scores; by default their plain softmax.
        inference: how rows are scored.
    """

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        *,
        pad_id: int,
        calibration: Calibration | None = None,
        inference: InferenceConfig | None = None,
    ) -> None:
        self.encoder = encoder
        self.calibration = calibration or Calibration()
        self._scorer = CandidateScorer(model, pad_id, inference)

    @property
    def model(self) -> Any:
        """The model, with or without adapter."""
        return self._scorer.model

    @property
    def batch_tokens(self) -> int:
        """Most tokens in one forward pass, shared ones left out."""
        return self._scorer.batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, tokens: int) -> None:
        self._scorer.batch_tokens = tokens

    def keep_prefixes(self, most_bytes: int) -> None:
        """How much memory the computed beginnings of prompts may take; the one used last is always kept."""
        self._scorer.keep_prefixes(most_bytes)

    def warm(self) -> None:
        """Does what is otherwise done at the first row: checks, replacements, the beginning that prompts share."""
        self.predict([Example("1")])

    def costs(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """Tokens that a forward pass computes for each prompt, if its beginning is computed already."""
        return [self._scorer.cost(request) for request in self._requests(prompts)]

    def beginning_cost(self, prompt: EncodedPrompt) -> int:
        """Tokens at the beginning of a prompt that :meth:`costs` leaves out though they are not computed yet."""
        return self._scorer.beginning_cost(*self._requests([prompt]))

    def forget_failed(self) -> None:
        """After a forward pass that failed: drops what it left behind, which may be large."""
        from fenlei.modeling.fuse import forget

        forget(self.model)

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
        return self.score(self.encode(examples, candidates=candidates), progress=progress)

    def encode(self, examples: Sequence[Example], *, candidates: Sequence[str] | None = None) -> list[EncodedPrompt]:
        """The first half of :meth:`predict`: token ids. May run in a thread while :meth:`score` is busy."""
        return self.encoder.encode_examples(examples, candidates)

    def score(
        self, prompts: Sequence[EncodedPrompt], *, progress: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """The second half of :meth:`predict`: the model's work."""
        return self._predictions(prompts, self._scorer.score(self._requests(prompts), progress=progress))

    def _requests(self, prompts: Sequence[EncodedPrompt]) -> list[ScoreRequest]:
        answers: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        requests = []
        for prompt in prompts:
            names = prompt.candidates
            if names not in answers:
                answers[names] = tuple(self.encoder.answer_ids(name) for name in names)
            requests.append(ScoreRequest(prompt.input_ids, answers[names], prompt.prefix_length))
        return requests

    def _predictions(self, prompts: Sequence[EncodedPrompt], scores: Sequence[np.ndarray]) -> list[Prediction]:
        import numpy as np

        if not all(np.isfinite(row).all() for row in scores):
            raise ModelError(
                "the model's scores are not finite numbers, so there is no answer to give; "
                "model.dtype=bfloat16 or float32 is the usual cure, float16 the usual cause"
            )
        names, cut = [tuple(p.candidates) for p in prompts], [p.truncated for p in prompts]
        return make_predictions(names, scores, cut, self.calibration)
