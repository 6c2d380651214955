"""DC-BENCH: ``evaluator/evaluator_utils.py`` of justincui03/dc_benchmark (2a57711).

Its ``DiffAugment`` and the loop of ``evaluate_synset`` are VICO's; one line after the class,
``EvaluatorUtils.DiffAugment = staticmethod(DiffAugment)``, puts this one in its place.
"""

from __future__ import annotations

from pyddfast.compat.vico import DiffAugment, fuse

__all__ = ["DiffAugment", "fuse"]
