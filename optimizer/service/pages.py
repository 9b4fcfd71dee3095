"""The pages: the login, and the frames that the scripts of the dashboard fill."""

from html import escape

from starlette.responses import HTMLResponse

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/svg+xml" href="/static/icon.svg">
<link rel="stylesheet" href="/static/service.css">
{head}</head>
<body>
{body}
</body>
</html>
"""

_PLAIN = """<main>
<h1>{title}</h1>
{content}
</main>"""

_BACK = '<p><a href="/">All searches</a></p>'

_DASHBOARD_HEAD = """<link rel="stylesheet" href="/static/dashboard.css">
<link rel="stylesheet" href="/static/forms.css">
<link rel="stylesheet" href="/static/charts.css">
<script type="module" src="/static/{script}.js"></script>
"""

# Scripts of a page fill its main part; who has none is told so.
_DASHBOARD = """<a class="skip" href="#main">To the content</a>
<header class="top">
<a href="/">mergefront</a>
<form method="post" action="/logout"><button type="submit">Log out</button></form>
</header>
<main id="main"{attributes}>
<h1>{title}</h1>
<noscript><p>This page needs JavaScript; the API at <code>/api/v1</code> does not.</p></noscript>
</main>"""

_FORM = """<p role="alert">{message}</p>
<form method="post" action="/login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required>
<button type="submit">Log in</button>
</form>"""


def page(title: str, content: str, *, status: int = 200, head: str = "") -> HTMLResponse:
    """Return a page; ``content`` and ``head`` are HTML, ``title`` is text."""
    name = escape(title)
    body = _PLAIN.format(title=name, content=content)
    return HTMLResponse(_PAGE.format(title=name, head=head, body=body), status)


def login_page(message: str, status: int) -> HTMLResponse:
    """Return the page that asks for the token."""
    return page("mergefront", _FORM.format(message=escape(message)), status=status)


def welcome_page() -> HTMLResponse:
    """Return the page after a login, which goes on to the first page by itself.

    A redirect would not do: where the link was clicked on another site, browsers leave a strict
    cookie out of all requests that the click leads to. From here on it is this site that asks.
    """
    head = '<meta http-equiv="refresh" content="0; url=/">\n'
    return page("mergefront", '<p>Logged in. <a href="/">Go on</a></p>', head=head)


def searches_page() -> HTMLResponse:
    """Return the page of all searches; its script asks the API for them."""
    return _dashboard("Searches", "searches", "")


def search_page(key: str, name: str) -> HTMLResponse:
    """Return the page of one search; its script asks the API for what it shows.

    Args:
        key: Its id.
        name: What its job calls it.
    """
    return _dashboard(name, "search", f' data-search="{escape(key)}"')


def missing_page(message: str) -> HTMLResponse:
    """Return the page that says that there is no such search."""
    return page("mergefront", f'<p role="alert">{escape(message)}</p>{_BACK}', status=404)


def _dashboard(title: str, script: str, attributes: str) -> HTMLResponse:
    name = escape(title)
    head = _DASHBOARD_HEAD.format(script=script)
    body = _DASHBOARD.format(title=name, attributes=attributes)
    return HTMLResponse(_PAGE.format(title=f"{name} - mergefront", head=head, body=body))
