"""Coresets: scores of samples, and class-balanced selection by them."""

from pyddfast.coresets.random import random_scores
from pyddfast.coresets.selection import Scores, Selection, select

__all__ = ["Scores", "Selection", "random_scores", "select"]
