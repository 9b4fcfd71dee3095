"""Reading job files: what is no YAML, no mapping, or meant to hurt, is one clear problem."""

import time
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.job_yaml import MAX_BYTES, parse_yaml, read_yaml

BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9))
    for name in range(ord("b"), ord("k"))
)


def test_lines_of_every_key_are_known() -> None:
    content, lines = parse_yaml(b"a: 1\nb:\n  c: [1,\n    {d: 2}]\n'e.f': 3\n", "job.yaml")

    assert content == {"a": 1, "b": {"c": [1, {"d": 2}]}, "e.f": 3}
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.c[0]": 3, "b.c[1]": 4, "b.c[1].d": 4, "e.f": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty; a job needs at least"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", "a job is a mapping .*, found list"),
        (b"just words\n", "a job is a mapping .*, found str"),
        (b"a: [1, 2\nb: 3\n", r"not valid YAML: .* \(line 2, column 2\)"),
        (b"a: 1\n\tb: 2\n", r"not valid YAML: .* \(line 2, column 1\)"),
        (b"a: 'open\n", "not valid YAML: found unexpected end of stream"),
        (b"a: *nowhere\n", r"found undefined alias 'nowhere' \(line 1, column 4\)"),
        (b"a: 1\n---\nb: 2\n", "but found another document"),
        (b"a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        (b"x: 1\na: !!int ''\n", r"not a value of int: .*\(line 2, column 4\)"),
        (b"a: 2024-99-99\n", r"not a value of timestamp: .*\(line 1, column 4\)"),
        (b"a: !!timestamp x\n", r"not a value of timestamp"),
        (b"a: \xff\xfe\n", "not valid YAML"),
        (b"a: \x00\n", "not valid YAML"),
        (b"a: &a [*a]\n", "line 1: an alias that contains itself"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"? [a, b]\n: 1\n", "unhashable key|a key must be text"),
        (BOMB, r"its aliases unfold into \d{9,} values, at most 100000 are read"),
    ],
)
def test_unusable_text_is_one_problem(text, message) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "job.yaml")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].path == "job.yaml"
    assert time.process_time() - started < 10.0


def test_key_given_twice_is_a_problem_with_both_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(b"seed: 1\nmodels:\n  base: a\n  base: b\nseed: 2\n", "job.yaml")

    assert [str(problem) for problem in caught.value.problems] == [
        "models.base: given twice, on lines 3 and 4; keep one",
        "seed: given twice, on lines 1 and 5; keep one",
    ]


def test_anchors_and_merge_keys_may_be_used() -> None:
    text = b"a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\nc: *base\n"
    content, _ = parse_yaml(text, "job.yaml")

    assert content == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_missing_file_is_a_problem(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_directory_is_a_problem(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_impossible_name_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(Path("nul\0.yaml"))
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_yaml(Path("x" * 300))


def test_large_file_is_refused(tmp_path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        read_yaml(path)


def test_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        read_yaml(Path("/dev/zero"))
