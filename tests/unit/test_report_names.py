"""Names in a report's tables: broken at underscores, and still escaped."""

from __future__ import annotations

from gotr1_jax.report.shell import make_environment


def test_a_name_breaks_after_underscores_and_is_escaped() -> None:
    template = make_environment("gotr1_jax.report").from_string("{{ name|breakable }}")
    assert template.render(name="my_long<b>_term") == "my_<wbr>long&lt;b&gt;_<wbr>term"
    assert template.render(name="sem") == "sem"
