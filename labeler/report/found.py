"""The page with what a search has found: pictures, texts and cosines, as one HTML document that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.inputs import replaced
from labeler.replacing import is_marked
from labeler.report.page import environment
from labeler.report.pictures import BUDGET, data_uri, examples_of, shortened
from labeler.values import writable

if TYPE_CHECKING:
    from labeler.searching import Found


def render_found(query: str, found: Found) -> str:
    """Return the page of what was found; without pictures, and saying so, where the store is gone or now another one."""
    examples, missing = pictures_of(found)
    cards, budget = [], BUDGET
    for hit in found.hits:
        picture, budget = data_uri(examples.get(hit.id), budget)
        cards.append({"id": hit.id, "text": shortened(hit.text), "score": hit.score, "picture": picture})
    html = environment().get_template("found.html.j2").render(query=query, cards=cards, missing=missing)
    return writable(html)  # a lone surrogate in what was typed must not stop the page


def is_found_page(path: Path) -> bool:
    """Return whether a file is such a page."""
    return is_marked(path, b'<meta name="generator" content="labeler">')


def pictures_of(found: Found) -> tuple[dict[str, Any], str | None]:
    """Return {id: Example} of the hits, and why there are none where the store is not the one that was indexed."""
    if replaced(found.store, found.sha256):
        return {}, f"Pictures are left out: {found.store} is not the store any more that was indexed."
    return examples_of(found.store, found.sha256, [hit.id for hit in found.hits])
