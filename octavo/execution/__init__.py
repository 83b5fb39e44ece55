"""The workshop: turns a `StepPlan` into a `StepResult`. Knows tensors and devices; knows no queue, text or socket.

`Executor` (executor.py) is the door; behind it a `Worker` per device owns a `ModelRunner`.
"""
