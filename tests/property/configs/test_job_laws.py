"""Whatever is given as a job, the answer is a job or a ConfigError."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.job_yaml import parse_yaml
from configs.load import job_of
from configs.problems import _known_paths
from configs.schema import JobConfig
from optimizer.job_changes import changed_keys

VALID = {
    "models": {"base": "org/base", "checkpoints": {"math": "org/math", "code": "org/code@v1"}},
    "objectives": {"math": ["gsm8k"], "code": [{"task": "mbpp", "weight": 2}]},
    "archive": "runs/x.sqlite",
}
PATHS = sorted(_known_paths(JobConfig))

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["free", "cuda", "a/b@c", "~", "../x", "nul\0", "\ud800", "x" * 5000, 10**400]
    )
)
keys = (
    st.sampled_from(sorted({part for path in PATHS for part in path.split(".")}))
    | st.text(max_size=5)
    | st.integers()
    | st.booleans()
    | st.none()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def answer(content, overrides=None) -> JobConfig | ConfigError:
    before = copy.deepcopy(content)
    found: JobConfig | ConfigError
    try:
        found = job_of(content, overrides)
    except ConfigError as error:
        found = error
    assert repr(content) == repr(before), "the caller's job was changed"
    if isinstance(found, ConfigError):
        check_problems(found)
    return found


def check_problems(error: ConfigError) -> None:
    assert error.problems
    assert all(problem.message for problem in error.problems)
    assert len(set(error.problems)) == len(error.problems)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, max_size=6))
def test_any_mapping_is_a_job_or_a_config_error(content) -> None:
    answer(content)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=6), values, max_size=4))
def test_any_override_gives_a_job_or_a_config_error(overrides) -> None:
    found = answer(VALID, overrides)
    if isinstance(found, JobConfig):
        assert len(found.digest) == 64
        assert JobConfig.model_validate(found.model_dump(mode="json")) == found
        assert changed_keys(found, found) == []


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="[]{}&*!:#-?|>'\"%@`,ab01.<~ \n", max_size=40))
def test_any_bytes_are_a_mapping_or_a_config_error(text) -> None:
    try:
        content, lines = parse_yaml(text if isinstance(text, bytes) else text.encode(), "job.yaml")
    except ConfigError as error:
        check_problems(error)
    else:
        answer(content)
        assert all(line >= 1 for line in lines.values())


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!set", "!!omap"]),
    st.text(alphabet="0123456789:-T .xz", max_size=12),
)
def test_any_tagged_value_is_a_value_or_a_config_error(tag, text) -> None:
    try:
        parse_yaml(f"seed: {tag} '{text}'\n".encode(), "job.yaml")
    except ConfigError as error:
        check_problems(error)
        where = error.problems[0].message
        assert "line 1" in where
