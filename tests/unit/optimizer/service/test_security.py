"""Who is let in, from where, with how much."""

import asyncio
import json
import re
import stat

import pytest
from fastapi.testclient import TestClient

from configs.errors import ConfigError
from optimizer.service.app import create_app
from optimizer.service.settings import ServiceSettings, token_path
from optimizer.service.tokens import Keys, find_or_make_token
from tests.unit.optimizer.service.conftest import TOKEN, URL

SEARCHES = "/api/v1/searches"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
STOP = "/api/v1/searches/done/stop"
# The search does not run, so a request that is let in is refused by the runner.
LET_IN = 409


@pytest.fixture(scope="module")
def app(written):
    return create_app(ServiceSettings(archive_dir=written), TOKEN)


@pytest.fixture
def http(app):
    """Sends requests without a token; nothing here changes an archive."""
    return TestClient(app, base_url=URL, follow_redirects=False)


def error_of(answer):
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"kind", "message", "problems"}
    return body["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xe9\xff".encode("latin-1")},
        {"Cookie": f"mergefront_80={TOKEN}"},
        {"Cookie": "mergefront_80=1.2.3"},
        {"Cookie": "mergefront_80=9999999999." + "a" * 24 + "." + "0" * 64},
        {"Cookie": ";;;=\x01"},
    ],
)
@pytest.mark.parametrize("path", [SEARCHES, "/api/v1/openapi.json", "/api/v1/nowhere"])
def test_without_the_token_nothing_is_seen(http, headers, path):
    answer = http.get(path, headers=headers)
    assert answer.status_code == 401
    assert error_of(answer)["kind"] == "unauthorized"
    assert "synthetic" not in answer.text
    assert answer.headers["www-authenticate"] == "Bearer"


def test_page_without_the_token_asks_for_it_and_shows_nothing(http):
    answer = http.get("/")
    assert answer.status_code == 401
    assert '<form method="post" action="/login">' in answer.text
    assert "synthetic" not in answer.text


def test_program_is_let_in_by_its_header(http):
    assert http.get(SEARCHES, headers=BEARER).status_code == 200
    assert http.post(STOP, json={}, headers=BEARER).status_code == LET_IN


def test_login_link_gives_a_cookie_that_scripts_and_other_sites_do_not_get(http):
    answer = http.get("/login", params={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN.lower() not in cookie
    assert TOKEN not in answer.text
    # A redirect would lose a strict cookie where the link was clicked on another site.
    assert 'http-equiv="refresh" content="0; url=/"' in answer.text
    assert http.get("/").status_code == 200
    assert http.get(SEARCHES).status_code == 200


def test_login_form_takes_the_token(http):
    assert http.post("/login", data={"token": "wrong"}).status_code == 401
    assert "set-cookie" not in http.post("/login", data={"token": "wrong"}).headers
    assert http.post("/login", data={"token": TOKEN}).status_code == 200
    assert http.get(SEARCHES).status_code == 200


def test_cookies_of_other_services_do_not_hide_ours(http, app):
    session = app.state.keys.new_session()
    others = 'a={"b": [1, 2]}; c d=e; =; f="g; \xe9'.encode("latin-1")
    for line in (others + b"; mergefront_80=%s", b"mergefront_80=%s; " + others):
        headers = {"Cookie": line % session.encode()}
        assert http.get(SEARCHES, headers=headers).status_code == 200


def test_login_with_a_wrong_token_gives_nothing(http):
    answer = http.get("/login", params={"token": "<script>"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "<script>" not in answer.text


def test_logout_forgets_the_cookie(http):
    http.get("/login", params={"token": TOKEN})
    answer = http.post("/logout", headers={"Origin": URL})
    assert answer.status_code == 303
    assert http.get(SEARCHES).status_code == 401


def test_session_ends_by_its_time_and_with_its_token():
    now = [1000.0]
    keys = Keys(TOKEN, session_s=60, clock=lambda: now[0])
    session = keys.new_session()
    assert keys.is_session(session)
    now[0] = 1059.0
    assert keys.is_session(session)
    now[0] = 1060.0
    assert not keys.is_session(session)
    now[0] = 1000.0
    assert not Keys("another" * 5, session_s=60, clock=lambda: now[0]).is_session(session)
    later = session.replace("1060.", "9999999999.", 1)
    assert not keys.is_session(later)


def test_expired_cookie_is_refused(settings):
    app = create_app(settings(session_s=-1.0), TOKEN)
    with TestClient(app, base_url=URL) as http:
        session = app.state.keys.new_session()
        answer = http.get(SEARCHES, headers={"Cookie": f"mergefront_80={session}"})
    assert answer.status_code == 401
    assert "over" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "[", "evil.example:80"]
)
def test_host_of_another_name_is_refused_even_with_the_token(http, host):
    answer = http.get(SEARCHES, headers={**BEARER, "Host": host})
    assert answer.status_code == 403
    assert error_of(answer)["kind"] == "forbidden"
    assert http.get("/login", params={"token": TOKEN}, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8642", "LOCALHOST:1", "[::1]:9"])
def test_loopback_is_known_by_its_names(http, host):
    assert http.get(SEARCHES, headers={**BEARER, "Host": host}).status_code == 200


def test_operator_names_more_hosts(settings):
    app = create_app(settings(host_names=frozenset({"Lab.Example"})), TOKEN)
    with TestClient(app, base_url="http://lab.example") as http:
        assert http.get(SEARCHES, headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Mergefront": "1"}, LET_IN),
        ({"Origin": URL}, LET_IN),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "X-Mergefront": "1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "X-Mergefront": "1"}, 403),
        ({"Sec-Fetch-Site": "same-site", "X-Mergefront": "1"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "X-Mergefront": "1"}, LET_IN),
    ],
)
def test_cookie_changes_something_only_from_pages_of_the_service(http, headers, status):
    http.get("/login", params={"token": TOKEN})
    assert http.post(STOP, json={}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (URL, 200),
        ("http://evil.example", 403),
        ("null", 403),  # sandboxed frames of any site send it
        ("http://[", 403),
        ("http://[::1", 403),
        ("", 403),
    ],
)
def test_only_the_service_s_own_form_logs_somebody_in(http, origin, status):
    answer = http.post("/login", data={"token": TOKEN}, headers={"Origin": origin})
    assert answer.status_code == status
    assert ("set-cookie" in answer.headers) == (status == 200)


def test_no_answer_lets_other_origins_read_it(http):
    answer = http.options(SEARCHES, headers={**BEARER, "Origin": "http://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def is_careful(answer, path):
    """Check the headers that every answer has."""
    found = answer.headers
    policy = found["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert found["x-content-type-options"] == "nosniff"
    # With `no-referrer` browsers send `Origin: null` with the login form.
    assert found["referrer-policy"] == "same-origin"
    assert found["x-frame-options"] == "DENY"
    kept = "no-cache" if path.startswith("/static") else "no-store"
    assert found["cache-control"] == kept


@pytest.mark.parametrize("path", ["/", "/login", SEARCHES, "/static/service.css", "/nowhere"])
@pytest.mark.parametrize("headers", [BEARER, {}])
def test_every_answer_tells_browsers_to_be_careful(http, path, headers):
    is_careful(http.get(path, headers=headers), path)


def test_pages_have_no_inline_script_or_style(http):
    http.get("/login", params={"token": TOKEN})
    for path in ("/", "/login"):
        text = http.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|<style|\bstyle=", text)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../pyproject.toml",
        "/static/%2e%2e/%2e%2e/settings.py",
        "/static/..%2fsettings.py",
        "/static//etc/passwd",
        "/static/%00",
    ],
)
def test_only_what_ships_is_served_without_the_token(http, path):
    assert http.get(path).status_code in {401, 404}


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../done",
        "%2e%2e",
        "..%2fdone",
        "done%2farchive.sqlite",
        "~",
        "%00",
        "done~..",
        "/etc",
    ],
)
@pytest.mark.parametrize("rest", ["", "/front", "/exports", "/log"])
def test_ids_are_looked_up_and_never_paths(http, name, rest):
    answer = http.get(f"{SEARCHES}/{name}{rest}", headers=BEARER)
    assert answer.status_code in {404, 405}
    error_of(answer)


def test_export_ids_are_no_paths(http):
    for name in ("%2e%2e%2f%2e%2e", "..%2f..", "00000000", "%2fetc%2fpasswd"):
        for rest in ("", "/download"):
            url = f"{SEARCHES}/done/exports/{name}{rest}"
            assert http.get(url, headers=BEARER).status_code == 404


def posted(app, headers, parts):
    """Post a body in parts, as a server hands it on; returns status, error, and parts taken."""
    waiting, sent = list(parts), []

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    named = {"host": "127.0.0.1", "authorization": BEARER["Authorization"], **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": SEARCHES,
        "raw_path": SEARCHES.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    asyncio.run(app(scope, receive, send))
    error = json.loads(sent[1]["body"])["error"]
    return sent[0]["status"], error["kind"], len(parts) - len(waiting)


def test_body_that_is_too_large_is_not_read(app):
    parts = [b"x" * 100_000] * 11
    assert posted(app, {"content-length": "1000001"}, parts) == (413, "too_large", 0)


def test_body_without_a_length_is_read_up_to_the_limit(app):
    assert posted(app, {}, [b"x" * 100_000] * 100) == (413, "too_large", 11)
    # Exactly as large as it may be, and all of it read.
    status, kind, taken = posted(app, {}, [b"x" * 100_000] * 10)
    assert (status, kind, taken) == (422, "request", 10)


def test_body_that_is_longer_than_it_says_is_read_up_to_the_limit(app):
    headers = {"content-length": "10"}
    assert posted(app, headers, [b"x" * 100_000] * 100) == (413, "too_large", 11)


def test_length_that_lies_is_refused(http):
    for length in ("-1", "1e3", "9" * 30):
        headers = {**BEARER, "Content-Length": length}
        assert http.post(SEARCHES, content=b"{}", headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"job": 1}', b'{"job": "a", "x": 1}', b"null"],
)
def test_body_that_is_no_request_is_said_to_be_none(http, body):
    headers = {**BEARER, "Content-Type": "application/json"}
    answer = http.post(SEARCHES, content=body, headers=headers)
    assert answer.status_code in {400, 422}
    error_of(answer)


def test_form_of_another_site_is_no_request(http):
    headers = {**BEARER, "Content-Type": "text/plain"}
    answer = http.post(SEARCHES, content=b'{"job": "a"}', headers=headers)
    assert answer.status_code == 422


def test_token_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = token_path(tmp_path / "archives")
    assert path != token_path(tmp_path / "others")
    token = find_or_make_token(path)
    assert len(token) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert find_or_make_token(path) == token


def test_token_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "token"
    find_or_make_token(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        find_or_make_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigError, match="at least 20 characters"):
        find_or_make_token(path)


def test_failure_inside_is_said_without_its_details(settings, monkeypatch):
    app = create_app(settings(), TOKEN)

    def fail() -> None:
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(app.state.services.searches, "all", fail)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as http:
        answer = http.get(SEARCHES, headers=BEARER)
    assert answer.status_code == 500
    assert error_of(answer)["kind"] == "internal"
    assert "secret" not in answer.text
    is_careful(answer, SEARCHES)
