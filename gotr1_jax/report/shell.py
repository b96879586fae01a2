"""What all pages share: templates, style sheet and scripts, in one file that needs no other."""

from __future__ import annotations

from typing import Any

import jinja2
import markupsafe

from gotr1_jax.report.charts import HEIGHT, WIDTH, format_decimals, format_signed
from gotr1_jax.report.gallery import GalleryData

_STYLE, _CHARTS, _GALLERY = "style.css", "charts.js", "gallery.js"


def make_environment(package: str) -> jinja2.Environment:
    """The templates of a package; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> markupsafe.Markup:
    """A name that a narrow column breaks after an underscore, rather than within a word."""
    return markupsafe.escape(name).replace("_", markupsafe.Markup("_<wbr>"))


def render_shell(
    template: str, title: str, *, galleries: GalleryData | None = None, **values: Any
) -> bytes:
    """The HTML of a page, UTF-8. All text is escaped by the template, never trusted.

    Args:
        template: of this package; it extends base.html.j2 and may use the macros of
            parts.html.j2 (charts, facts, problems, the configuration).
        title: the heading, and the name of the browser's tab.
        galleries: of the page, each of which the template places by the macro `gallery`.
        values: what the template reads.
    """
    environment = make_environment("gotr1_jax.report")
    galleries = GalleryData({}) if galleries is None else galleries
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.globals |= {
        "chart_width": WIDTH, "chart_height": HEIGHT,
        "decimals": format_decimals, "signed": format_signed,
    }  # fmt: skip

    def own(name: str) -> str:
        """A style sheet or script of this package: not escaped."""
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    scripts = [_CHARTS, *([_GALLERY] if galleries else [])]
    page = environment.get_template(template).render(
        title=title,
        galleries=galleries,
        style=own(_STYLE),
        # Each in a scope of its own.
        script="\n".join(f'(() => {{\n"use strict";\n{own(name)}}})();' for name in scripts),
        **values,
    )
    # Half of a surrogate pair can come out of broken JSON; it has no UTF-8 form.
    return page.encode("utf-8", errors="replace")
