"""Whether the model works at all: after some errors of a GPU, nothing does any more until the process is new."""

from __future__ import annotations

import logging

from fenlei.server.models import Models

_log = logging.getLogger(__name__)
# passes in a row of which nothing came; texts of one client may be at fault, so then a text of our own decides
MOST_FAILED = 3


class Soundness:
    """What passes and, after failures, a text of our own say of the model.

    Args:
        models: the classifiers; the first one is asked.

    Attributes:
        good: whether the model works.
    """

    def __init__(self, models: Models) -> None:
        self.good = True
        self._models = models
        self._failed = 0
        self._looking = False

    def note(self, answered: bool) -> None:
        """A pass has ended, with an answer or without any; on the scoring thread."""
        if answered:
            self._failed, self.good = 0, True
            return
        self._failed += 1
        if self._failed >= MOST_FAILED:
            self._look()

    def look_again(self) -> None:
        """Has the scoring thread look whether the model works by now."""
        if not self._looking:
            self._looking = True
            self._models.scoring.submit(self._look)

    def _look(self) -> None:
        predictor = self._models.get(None).classifier.predictor
        try:
            predictor.warm()
            self._failed, good = 0, True
        except Exception as error:
            predictor.forget_failed()
            good = False
            _log.debug("", exc_info=error)
        if good != self.good:
            _log.log(
                logging.INFO if good else logging.ERROR, "the model works again" if good else "the model does not work"
            )
        self.good, self._looking = good, False
