"""Makes `synthetic` importable, so that "synthetic:Synthetic-v0" is an environment id."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
