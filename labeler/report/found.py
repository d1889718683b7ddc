"""The page with what a search has found: pictures, texts and cosines, as one HTML document that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labeler.report.page import environment
from labeler.report.pictures import BUDGET, data_uri, examples_of, shortened


def render_found(query: str, store: Path, hits: Sequence[Any]) -> str:
    """Return the page of `hits`, the nearest first; without pictures, and saying so, where the store is gone.

    A hit has an `id`, a `text` and a `score`.
    """
    examples, missing = examples_of(store, [hit.id for hit in hits])
    cards, budget = [], BUDGET
    for hit in hits:
        picture, budget = data_uri(examples.get(hit.id), budget)
        cards.append({"id": hit.id, "text": shortened(hit.text), "score": hit.score, "picture": picture})
    html = environment().get_template("found.html.j2").render(query=query, cards=cards, missing=missing)
    return html.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate in what was typed must not stop the page
