"""The frames of the dashboard's pages, and the scripts that fill them."""

import re

import pytest
from starlette.testclient import TestClient

from optimizer.service.app import STATIC, create_app
from optimizer.service.security import CONTENT_SECURITY_POLICY
from tests.unit.optimizer.service.conftest import TOKEN, URL
from tests.unit.optimizer.synthetic_archive import Merge, build

SCRIPTS = sorted(STATIC.glob("*.js"))


def references(text: str) -> set[str]:
    return set(re.findall(r'(?:src|href)="(/static/[^"]+)"', text))


@pytest.mark.parametrize("path", ["/", "/searches/done", "/login"])
def test_page_refers_to_files_that_ship_alone(as_program, path):
    answer = as_program.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    found = references(answer.text)
    assert found
    for reference in found:
        assert as_program.get(reference).status_code == 200, reference
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|<style|\bstyle=", answer.text)


def test_page_of_search_names_it(as_program):
    text = as_program.get("/searches/done").text
    assert 'data-search="done"' in text
    assert "<h1>synthetic</h1>" in text


def test_page_of_search_escapes_names(settings, archives):
    home = archives / 'a"b<i>'
    home.mkdir()
    name = '<img src=x onerror="1">'
    build(home / "archive.sqlite", [Merge((1, 0, 0), (1, 1, 1))], name=name)
    with TestClient(create_app(settings(), TOKEN), base_url=URL) as http:
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        text = http.get("/searches/a%22b%3Ci%3E").text
    assert "<img" not in text
    assert "&lt;img src=x" in text
    assert "<i>" not in text
    assert 'data-search="a&quot;b&lt;i&gt;"' in text


def test_page_of_unknown_search_says_so(as_program):
    answer = as_program.get("/searches/none<b>")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "there is no search `none&lt;b&gt;`" in answer.text


@pytest.mark.parametrize("path", ["/", "/searches/done", "/searches/none"])
def test_page_without_token_asks_for_it_and_tells_nothing(http, path):
    answer = http.get(path)
    assert answer.status_code == 401
    assert "done" not in answer.text
    assert 'name="token"' in answer.text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_imports_what_ships_and_parses_no_html(script):
    text = script.read_text(encoding="utf-8")
    for name in re.findall(r'from "([^"]+)"', text):
        assert (STATIC / name).resolve() in SCRIPTS, name
    # Text of archives must not become elements, code, or styles that the policy forbids.
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMPars"
    )
    assert not re.search(forbidden, text)
    assert not re.search(r'setAttribute\("style"|\bstyle:', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_scripts_use_no_name_that_nothing_exports():
    exported = {
        path.name: set(re.findall(r"export (?:async )?(?:function|class|const) (\w+)", text))
        for path in SCRIPTS
        if (text := path.read_text(encoding="utf-8"))
    }
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        for names, file in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text):
            wanted = {name.strip() for name in names.split(",") if name.strip()}
            assert wanted <= exported[file], (path.name, file)
            for name in wanted:
                assert len(re.findall(rf"\b{name}\b", text)) > 1, (path.name, name)
