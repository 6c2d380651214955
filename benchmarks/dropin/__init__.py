"""Official scripts, as they are and with a few lines changed: ``python -m benchmarks.dropin``.

Reading order: ``codebases.py`` (what is run and which lines change), ``stubs.py`` (what stands for
a GPU, weights and services), ``inputs.py`` (what the scripts read), ``child.py`` (one run of one
script), ``__main__.py`` (the comparison).

Nothing of the codebases is kept here: a change is a line number and the line put there.
"""
