"""The benchmark suite: ``python -m benchmarks run`` measures, ``... report`` renders.

Reading order: ``harness.py`` (what a time is), ``ops/`` (what is timed), ``run.py`` (one run, one
JSON), ``schema.json`` (what that JSON holds), ``report.py`` (the pages made from it).
"""
