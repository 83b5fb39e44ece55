"""The workshop: turns a `StepPlan` into a `StepResult`. Knows tensors and devices; knows no queue, text or socket.

`Executor` (executor.py) is the door; behind it a `Worker` per device owns a `ModelRunner`.
"""

import os

# Read by OpenMP when torch is loaded, which nothing above this folder does. Its threads would go on spinning after each
# product, on the cores that octavo's own threads compute on next: beside one busy process that cost nine tenths.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
