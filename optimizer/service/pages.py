"""The pages that are served without a dashboard: the login, and a list of the searches."""

from html import escape

from starlette.responses import HTMLResponse

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{title}</title>
<link rel="stylesheet" href="/static/service.css">
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
</body>
</html>
"""

_FORM = """<p role="alert">{message}</p>
<form method="post" action="/login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required>
<button type="submit">Log in</button>
</form>"""


def page(title: str, content: str, *, status: int = 200, head: str = "") -> HTMLResponse:
    """Return a page; ``content`` and ``head`` are HTML, ``title`` is text."""
    return HTMLResponse(_PAGE.format(title=escape(title), content=content, head=head), status)


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


def searches_page(rows: list[tuple[str, str, str, str]]) -> HTMLResponse:
    """Return the list of searches: id, name, state and how far each is."""
    if not rows:
        return page("Searches", "<p>There is no search yet.</p>")
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(state)}</td><td>{escape(far)}</td>'
        f"<td><code>{escape(key)}</code></td></tr>\n"
        for key, name, state, far in rows
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("name", "state", "done", "id"))
    return page("Searches", f"<table>\n<thead><tr>{heads}</tr></thead>\n{lines}</table>")
