"""Leaving while a thread still works: a download does not hear that nobody waits for it any more."""

from __future__ import annotations

import os
import sys
import threading


def leave(status: int) -> None:
    """End the process now if the ordinary way out would wait for threads; else return."""
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
