"""Deterministic simulation: the real scheduler, core loop and engine under one seeded thread.

`scenario` says what happens. `world` lets it happen to the core and the way out, `service` to the whole engine with its
supervisor, in the virtual time of `clock`. `worker` stands in for the devices (`tensors`: behind real block tables),
`callers` for those who ask; `oracle` knows what each request says alone, `books` holds the invariants. `shrink` makes a
small scenario of one that fails; `mutations` proves that failures are seen. `python -m simulation` runs seeds by the
million.
"""
