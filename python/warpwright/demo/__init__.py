"""`warpwright demo`: checks, trains and measures on this machine, and writes a report."""

from warpwright.demo.report import write_report
from warpwright.demo.train import TASKS, TrainingResult, train_both

__all__ = ["TASKS", "TrainingResult", "train_both", "write_report"]
