"""The report: one page that opens from disk, the same figures as JSON, and the model card."""

from fenlei.evaluation.report.card import card_of_copy, model_card
from fenlei.evaluation.report.data import Comparison, Cost, LabelIssue, ReportData, Row, Rung
from fenlei.evaluation.report.figures import report_json
from fenlei.evaluation.report.read import read_run
from fenlei.evaluation.report.write import write_report

__all__ = [
    "Comparison",
    "Cost",
    "LabelIssue",
    "ReportData",
    "Row",
    "Rung",
    "card_of_copy",
    "model_card",
    "read_run",
    "report_json",
    "write_report",
]
