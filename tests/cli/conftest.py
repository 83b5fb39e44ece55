"""The scripted engine and server of tests/api serve here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "api"))
