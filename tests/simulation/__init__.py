"""Deterministic simulation: the real scheduler, core loop and request lifecycle under one seeded thread.

`scenario` says what happens, `world` lets it happen, `worker` stands in for the devices, `oracle` knows what each
request would say alone, `books` holds the invariants, `mutations` proves that they see. `python -m simulation` runs
seeds by the million.
"""
