"""Metrics of a classifier on labelled rows, calibration, and when to abstain."""

from fenlei.evaluation.metrics import evaluate_predictions

__all__ = ["evaluate_predictions"]
