"""The Jinja templates of this package: a name that a template lacks is an error."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Return an environment with the templates beside a package's modules.

    What goes into ``*.html.j2`` is escaped; Markdown and YAML have filters of their own.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html.j2"]),
    )
