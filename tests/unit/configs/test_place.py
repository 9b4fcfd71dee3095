"""Where an archive is: paths, URLs, and what is refused of them."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import job_of
from configs.place import DatabasePlace, FilePlace, read_place


@pytest.mark.parametrize("text", ["run.sqlite", "/runs/a b?x=1.sqlite", Path("postgresql:/x/y")])
def test_path_is_a_file(text) -> None:
    assert read_place(text) == FilePlace(Path(text))
    assert str(read_place(text)) == str(text)


@pytest.mark.parametrize(
    ("url", "connection", "search"),
    [
        (
            "postgresql://ann@db.example:5433/merges?search=7b-math",
            {"user": "ann", "host": "db.example", "port": "5433", "dbname": "merges"},
            "7b-math",
        ),
        ("postgresql://db/merges", {"host": "db", "dbname": "merges"}, "default"),
        ("postgres:///merges", {"dbname": "merges"}, "default"),
        (
            "postgresql://a%40b@/my%20db?host=/run/pg&port=6000&sslmode=require&search=x",
            {"user": "a@b", "host": "/run/pg", "port": "6000", "dbname": "my db",
             "sslmode": "require"},
            "x",
        ),
        ("postgresql://[::1]:5/m", {"host": "::1", "port": "5", "dbname": "m"}, "default"),
        ("postgresql://?service=team", {"service": "team"}, "default"),
    ],
)  # fmt: skip
def test_url_is_a_search_in_a_database(url, connection, search) -> None:
    place = read_place(url)
    assert isinstance(place, DatabasePlace)
    assert (dict(place.connection), place.search) == (connection, search)
    again = read_place(str(place))
    assert again == place
    assert read_place(again) is again


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://db/merges", "`mysql://` is no place for an archive; give the path of a file, or"),
        ("postgresql://ann:hunter2@db/merges", "holds a password"),
        ("postgresql://db/merges?password=hunter2", "holds a password"),
        ("postgresql://ann:@db/merges", "holds a password"),
        ("postgresql://db", "must name one database"),
        ("postgresql://db/", "must name one database"),
        ("postgresql://db/a/b", "must name one database"),
        ("postgresql://db:port/merges", "the port is no number"),
        ("postgresql://db:99999/merges", "the port is no number"),
        ("postgresql://[::1/merges", "cannot be read: it is malformed"),
        ("postgresql://db/merges?search", "cannot be read"),
        ("postgresql://db/merges?search=", "must be 1 to 100 letters"),
        ("postgresql://db/merges?search=a/b", "must be 1 to 100 letters"),
        ("postgresql://db/merges?serach=a", "`serach` is no option of the URL; there are `search`"),
        ("postgresql://db/merges?options=-cfsync%3Doff", "`options` is no option"),
    ],
)  # fmt: skip
def test_url_that_cannot_be_used_is_refused(url, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_place(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hun/ter2@db/merges", "postgresql://ann:hun#ter2@db/merges",
        "postgresql://ann:12?hunter2@db/merges", "postgresql://ann:hunter2@db:x/merges",
    ],
)  # fmt: skip
def test_password_that_breaks_the_url_is_not_shown(url) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        read_place(url)
    assert "ter2" not in str(caught.value)


def test_neighbours_of_an_archive() -> None:
    file, search = read_place("/runs/a.sqlite"), read_place("postgresql://db/m?search=a")
    assert str(file.beside("random")) == "/runs/a.random.sqlite"
    assert str(search.beside("random")) == "postgresql://db/m?search=a.random"
    assert file.output("front") == Path("/runs/a-front")
    assert search.output("front") == Path("a-front")
    assert (file.public_name, search.public_name) == ("a.sqlite", "ARCHIVE")


def test_job_names_a_database_or_says_what_is_wrong_with_it() -> None:
    content = {
        "models": {"base": "/b", "checkpoints": {"x": "/x", "y": "/y"}},
        "objectives": {"math": "gsm8k"},
        "archive": "postgresql://ann@db/merges?search=s",
    }
    assert job_of(dict(content), {}, name="job").archive == content["archive"]
    with pytest.raises(ConfigError) as caught:
        job_of(content | {"archive": "postgresql://ann:hunter2@db/merges"}, {}, name="job")
    assert "archive: the URL holds a password" in caught.value.message
    assert "hunter2" not in caught.value.message
