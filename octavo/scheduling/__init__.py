"""The planning room: who computes what in the next step, and which blocks of the KV cache they own.

Pure Python: no torch, clock, thread, random number or I/O, so a step takes microseconds and every schedule can be
replayed. `Scheduler` is the door; it meets `execution` only through the types of `octavo.plan`.
"""
