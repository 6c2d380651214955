from __future__ import annotations

import sys
from pathlib import Path

# Data and networks of the methods' tests; importlib mode adds no path itself.
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
