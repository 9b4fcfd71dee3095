"""Errors as answers: their status, and their words."""

import pytest

from configs import errors
from configs.errors import Problem
from optimizer.service.errors import error_content, status_of


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.CheckpointNotFoundError, 404),
        (errors.CorruptCheckpointError, 409),
        (errors.EvaluationError, 422),
        (errors.ClusterError, 502),
        (errors.WorkerLostError, 503),
        (errors.ArchiveNotFoundError, 404),
        (errors.ArchiveExistsError, 409),
        (errors.ArchiveLockedError, 409),
        (errors.SchemaVersionError, 409),
        (errors.TooManyFailuresError, 409),
        (errors.HubError, 500),
    ],
)
def test_error_has_its_status(kind, status):
    assert status_of(kind("text")) == status


@pytest.mark.parametrize("kind", [errors.IncompatibleCheckpointsError, errors.JobChangedError])
def test_error_with_problems_has_its_status(kind):
    assert status_of(kind("text", [Problem("a", "b")])) == 409


def test_options_are_called_as_in_requests_but_not_in_what_the_caller_wrote():
    found = error_content(
        "config",
        "1 problem in --at-least",
        [
            Problem("--prefer", "`--prefer` is no objective; leave --prefer, --at-least out"),
            Problem("--id", "an id names one recipe, --idle and --knee-cap are none"),
        ],
    )["error"]
    assert found["message"] == "1 problem in floors"
    assert found["problems"] == [
        {"path": "prefer", "message": "`--prefer` is no objective; leave prefer, floors out"},
        {"path": "recipe_id", "message": "an id names one recipe, --idle and --knee-cap are none"},
    ]
