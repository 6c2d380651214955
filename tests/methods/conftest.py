import sys
from pathlib import Path

# The helpers of this folder; the suite runs with importlib mode, which adds no path itself.
sys.path.insert(0, str(Path(__file__).parent))
