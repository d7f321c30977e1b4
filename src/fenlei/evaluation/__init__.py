"""Metrics of a classifier on labelled rows."""

from fenlei.evaluation.metrics import evaluate_predictions

__all__ = ["evaluate_predictions"]
