import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from optimizer.service.app import create_app
from optimizer.service.client import ServiceClient
from optimizer.service.errors import BusyError
from optimizer.service.settings import ServiceSettings
from tests.unit.optimizer.synthetic_archive import Merge, build

TOKEN = "a-token-for-tests-and-nothing-else"
URL = "http://127.0.0.1"

MERGES = (
    Merge((0, 0, 0), (0.1, 0.2, 0.1), (0.1,) * 3, (0.1,) * 3, origin="baseline:base"),
    Merge((0.7, 0.6, 0.5), (0.9, 0.7, 0.6), (0.8,) * 3, (0.7, 0.6, 0.5)),
    Merge((0.7, 0.6, 0.6), (0.5, 0.5, 1.0)),
    Merge((0.1, 0.6, 0.6), None),
    Merge((0.1, 0.1, 0.6), (0.2, 0.1, 0.3)),
)


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """A directory with one finished search, `done`; others change copies of it."""
    root = tmp_path_factory.mktemp("archives")
    (root / "done").mkdir()
    build(root / "done" / "archive.sqlite", MERGES, chosen=1, budget={"evaluations": 6})
    return root.resolve()


@pytest.fixture
def archives(written, tmp_path) -> Path:
    """A directory with one finished search, `done`."""
    return shutil.copytree(written, tmp_path / "archives").resolve()


@pytest.fixture
def settings(archives, tmp_path) -> Callable[..., ServiceSettings]:
    models = tmp_path / "models"
    models.mkdir(exist_ok=True)

    def make(**changes: object) -> ServiceSettings:
        content = {
            "archive_dir": archives,
            "model_roots": (models.resolve(),),
            "poll_s": 0.05,
            "stream_s": 0.2,
        }
        return ServiceSettings(**{**content, **changes})

    return make


@pytest.fixture
def http(settings) -> Iterator[TestClient]:
    """Sends requests without a token."""
    with TestClient(create_app(settings(), TOKEN), base_url=URL, follow_redirects=False) as found:
        yield found


@pytest.fixture
def as_program(http) -> TestClient:
    """Sends the token with every request."""
    http.headers["Authorization"] = f"Bearer {TOKEN}"
    return http


@pytest.fixture
def client(http) -> ServiceClient:
    assert isinstance(http, httpx2.Client)
    return ServiceClient(URL, TOKEN, http=http)


def has_all_streams(app) -> bool:
    """Whether an application refuses more event streams."""
    try:
        app.state.services.refuse_more_streams()
    except BusyError:
        return True
    return False
