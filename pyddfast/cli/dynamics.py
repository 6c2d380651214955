"""``pyddfast analyze dynamics``, ``starts`` and ``grid``: a synthesis over time, and its images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from pyddfast.analysis.dynamics import loss_dynamics
from pyddfast.cli.options import DataOptions, Flat, ModelOptions
from pyddfast.cli.sets import load_set
from pyddfast.data.atomic import refuse_non_empty, write_bytes, write_json
from pyddfast.data.stored import read_json
from pyddfast.methods import snapshots
from pyddfast.report.dynamics import dynamics_figure, start_epoch_figure
from pyddfast.report.grids import method_grid
from pyddfast.train import Epochs, train_student
