"""Converts formulas to MathML, which browsers show without scripts and network, for the report and the site.

    mathml(r"\\tau", block=False)                      # <math ...>
    FORMULA.sub(replace, markdown)                    # groups code, block, inline; one of them is set

It imports nothing of the library, because the site's build loads it as a file.
"""

from __future__ import annotations

import html
import re

FORMULA = re.compile(
    r"(?P<code>`[^`\n]+`)|(?<!\\)\$\$(?P<block>.+?)\$\$|(?<!\\)\$(?!\s)(?P<inline>[^$`\n]+?)(?<![\s\\])\$(?!\d)",
    re.DOTALL,
)
"""A formula in Markdown, or a code span, in which a dollar begins no formula. "$20 or $30" is no formula."""


def mathml(formula: str, *, block: bool) -> str:
    """Converts a TeX formula, without dollars, to MathML. A formula that cannot be read is shown as text.

    Args:
        block: whether it is a displayed formula.
    """
    from latex2mathml.converter import convert

    try:
        return convert(formula, display="block" if block else "inline")
    except Exception:  # errors of many classes without a common base
        return f"<code>{html.escape(formula)}</code>"
