"""Everything that the OpenAPI promises, asked for with what it allows and with what it does not."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from optimizer.service.app import create_app
from optimizer.service.settings import ServiceSettings
from tests.e2e.service_server import served
from tests.unit.optimizer.service.conftest import MERGES, TOKEN
from tests.unit.optimizer.synthetic_archive import build

pytestmark = pytest.mark.slow

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A service with a finished search, which starts no process whatever it is asked."""
    root = tmp_path_factory.mktemp("archives").resolve()
    (root / "done").mkdir()
    build(root / "done" / "archive.sqlite", MERGES, chosen=1)
    settings = ServiceSettings(archive_dir=root, max_searches=0, stream_s=0.05, poll_s=0.02)
    return create_app(settings, TOKEN)


@pytest.fixture(scope="module")
def url(app):
    with served(app) as found:
        yield found


def test_every_answer_is_what_the_schema_says(app, url):
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 22
    for operation in operations:
        _ask(operation, url)


def _ask(operation, url: str) -> None:
    """Ask one operation for all kinds of things; raises where an answer is not as promised."""

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def ask(case) -> None:
        # Ids that are made up only find out that there is no such search.
        if "search" in case.path_parameters and case.method != "DELETE":
            case.path_parameters["search"] = "done"
        answer = case.call(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"})
        case.validate_response(answer, checks=CHECKS)

    ask()
