"""Checks of a data set before anything is trained on it."""

from fenlei.data.checks.check import MakeMeasure, check_data
from fenlei.data.checks.lengths import Measure, TokenLengths
from fenlei.data.checks.report import SEVERITIES, CheckReport, Finding, Lengths, Place, SplitSummary, TokenSummary
from fenlei.data.checks.settings import CheckSettings

__all__ = [
    "SEVERITIES",
    "CheckReport",
    "CheckSettings",
    "Finding",
    "Lengths",
    "MakeMeasure",
    "Measure",
    "Place",
    "SplitSummary",
    "TokenLengths",
    "TokenSummary",
    "check_data",
]
