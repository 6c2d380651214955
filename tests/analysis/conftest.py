from __future__ import annotations

import sys
from pathlib import Path

# Helpers of this folder and of the methods' tests; importlib mode adds no path itself.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
