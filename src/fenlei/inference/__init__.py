"""Batch prediction, in memory and from file to file."""

from fenlei.inference.predictor import Predictor
from fenlei.modeling.prediction import Prediction

__all__ = ["Prediction", "Predictor"]
