"""`schemathesis` over the served OpenAPI document: no 5xx, every answer as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from checks import check

URL, SCRATCH, EXAMPLES, MODEL, EMBEDDER = sys.argv[1:6]
CONFIG = f"""\
[dictionaries.models]
values = ["{MODEL}", "{EMBEDDER}"]

[parameters]
"body.model" = {{ dictionary = "models", probability = 0.9 }}
"path.model" = {{ dictionary = "models", probability = 0.5 }}
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

with check("no 5xx, every answer as documented") as notes:
    config = Path(SCRATCH) / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config),
        "run", f"{URL}/openapi.json", "--url", URL,
        "--checks", CHECKS, "--max-examples", EXAMPLES, "--seed", "1", "--generation-database", "none",
        "--request-timeout", "180", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRATCH, timeout=3000, check=False)
    sys.stderr.write(done.stdout[-20000:])
    notes.extend(re.findall(r"^ *(\d+ generated, .*)$", done.stdout, re.MULTILINE)[:1])
    assert done.returncode == 0, done.stdout[-3000:]
