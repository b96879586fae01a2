"""What all pages share: templates, style sheet and scripts, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from gotr1_jax.report.charts import HEIGHT, WIDTH, format_decimals, format_signed

_STYLE, _CHARTS = "style.css", "charts.js"


def make_environment(package: str) -> jinja2.Environment:
    """The templates of a package; text is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_shell(template: str, title: str, *, scripts: Sequence[str] = (), **values: Any) -> bytes:
    """The HTML of a page, UTF-8. All text is escaped by the template, never trusted.

    Args:
        template: of this package; it extends base.html.j2 and may use the macros of
            parts.html.j2 (charts, facts, problems, the configuration).
        title: the heading, and the name of the browser's tab.
        scripts: templates that are run at the end, after that of the charts.
        values: what the template reads.
    """
    environment = make_environment("gotr1_jax.report")
    environment.globals |= {
        "chart_width": WIDTH, "chart_height": HEIGHT,
        "decimals": format_decimals, "signed": format_signed,
    }  # fmt: skip

    def own(name: str) -> str:
        """A style sheet or script of this package: not escaped."""
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    page = environment.get_template(template).render(
        title=title,
        style=own(_STYLE),
        # Each in a scope of its own.
        script="\n".join(f"{{\n{own(name)}}}" for name in (_CHARTS, *scripts)),
        **values,
    )
    # Half of a surrogate pair can come out of broken JSON; it has no UTF-8 form.
    return page.encode("utf-8", errors="replace")
