"""Leaving while a thread still works: a download does not hear that nobody waits for it any more."""

from __future__ import annotations

import logging
import os
import sys
import threading


def leave(status: int) -> None:
    """End the process now if the ordinary way out would wait for threads; else return."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
