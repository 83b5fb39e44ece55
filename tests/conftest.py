"""For every test: no limit of time, and the real models, fetched once into the cache as a first start would.

Where there is no GPU, Triton kernels are interpreted, on tensors of the CPU: triton looks for the wish when imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from octavo import env
from octavo.checkpoint import Checkpoint, resolve
from octavo.config import ModelConfig
from octavo.errors import CheckpointError


def gpu_present() -> bool:
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False  # without a second spent on importing torch
    import torch

    return torch.cuda.is_available()


if not gpu_present():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("octavo", deadline=None)  # a busy machine is no failure
settings.load_profile("octavo")


def real_model(name: str | None) -> Checkpoint:
    try:
        return resolve(ModelConfig(model=name))
    except CheckpointError as error:
        if env.OFFLINE:
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    """SmolLM2-135M-Instruct, Q4_1: Llama family, byte-level BPE, chat template."""
    return real_model(None)


@pytest.fixture(scope="session")
def gemma3() -> Checkpoint:
    """Gemma 3 270M, Q4_K and others: Gemma family, SentencePiece, no chat template."""
    return real_model("gemma-3-270m")


@pytest.fixture(scope="session")
def minilm() -> Checkpoint:
    """all-MiniLM-L6-v2: BERT, mean pooling, normalized."""
    return real_model("all-MiniLM-L6-v2")
