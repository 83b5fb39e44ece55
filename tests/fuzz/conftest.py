"""The scripted engine of tests/api and the server processes of tests/qa serve here too."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / folder) for folder in ("api", "qa")]
