"""The report as one page that needs no network, no font and no script, from a card and its measurements alone."""

from __future__ import annotations

import base64
import hashlib
from importlib.util import find_spec
from pathlib import Path

from ptq.analysis.card_file import BenchFile, Card
from ptq.analysis.page import words
from ptq.analysis.page.rows import View
from ptq.core.errors import InputError

FILES = Path(__file__).parent / "files"
NEEDED = ("jinja2", "matplotlib")


def require_extra() -> None:
    """Find out before the work starts whether a report can be made.

    Raises:
        InputError: A package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f'a report needs {" and ".join(missing)}; run pip install "ptq[report]"')


def page(card: Card, bench: BenchFile | None) -> bytes:
    """Write the report as a page.

    Args:
        card: What happened.
        bench: What was measured; None if that is not at hand.

    Returns:
        HTML in UTF-8; the same for the same arguments.

    Raises:
        InputError: A package is missing.
    """
    require_extra()
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(FILES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= words.FILTERS
    script = (FILES / "sort.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    view = View(card, bench)
    html = environment.get_template("page.html").render(
        view=view,
        card=card,
        bench=view.bench,
        style=Markup((FILES / "style.css").read_text()),
        script=Markup(script),
        script_digest=digest,
    )
    return html.encode(errors="replace")  # half a surrogate pair in a name has no bytes
