"""The scripted engine of tests/api serves here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "api"))
