"""Puts this folder on the path, so that tests and the processes they start share `tiny_lm`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
