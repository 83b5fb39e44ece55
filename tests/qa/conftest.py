"""One server of each kind for all tests of this folder; after each test the server it used must be as good as new."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qa_server import KEY, MOST_OF_MANY, QaServer, serve, serve_fake
from tiny_model import write_tiny_model

sys.path.append(str(Path(__file__).parent.parent / "api"))

#: Little memory, so that leaks show; and a machine that is busy with something else is no hang of the server.
FLAGS = ("--max-model-len", "8192", "--kv-cache-memory", "8MiB", "--hang-timeout", "300")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def real_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QaServer]:
    with serve(tiny_model, tmp_path_factory.mktemp("server"), *FLAGS) as server:
        server.warm_up()
        yield server


@pytest.fixture(scope="session")
def keyed_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QaServer]:
    with serve(tiny_model, tmp_path_factory.mktemp("keyed"), "--api-key", KEY, *FLAGS, key=KEY) as server:
        server.warm_up()
        yield server


@pytest.fixture(scope="session")
def impatient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QaServer]:
    """A scripted engine behind deadlines of a second, where the product waits for many."""
    with serve_fake(tmp_path_factory.mktemp("fake"), header_seconds=1, body_seconds=1) as server:
        server.warm_up()
        yield server


@pytest.fixture
def server(real_server: QaServer) -> Iterator[QaServer]:
    with real_server.unharmed():
        yield real_server


@pytest.fixture
def roomy(real_server: QaServer) -> Iterator[QaServer]:
    """The same server, for tests with many connections or texts of megabytes at once."""
    with real_server.unharmed(MOST_OF_MANY):
        yield real_server


@pytest.fixture
def keyed(keyed_server: QaServer) -> Iterator[QaServer]:
    with keyed_server.unharmed():
        yield keyed_server


@pytest.fixture
def impatient(impatient_server: QaServer) -> Iterator[QaServer]:
    with impatient_server.unharmed():
        yield impatient_server
