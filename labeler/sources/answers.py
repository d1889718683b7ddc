"""Visual question answering as classification: the text is the question, the label the answer that most people gave.

Antol et al. 2015, "VQA: Visual Question Answering"; Singh et al. 2019, "Towards VQA Models That Can Read" (TextVQA).
Answers are compared as they stand: no lower case, no punctuation removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from labeler.records import Row, field_called, find_field
from labeler.values import RowError, clean_text, string_of

UNKNOWN = "<unk>"  # the label of every answer outside a vocabulary


def with_answer(row: Row, mapping: Mapping[str, str]) -> Row:
    """Return a row with a question and a list of answers with the most frequent answer as its label, else the row itself.

    They are the fields `question`, or what `mapping` names for the text, and `answers`, in capitals or not. Of answers given
    equally often it is the one given first. An answer is a string, a finite number, or an object {"answer": either}. A
    row that has a label of its own, or whose label `mapping` names, keeps it. The label is a tuple of one, since an
    answer may hold what separates labels in a string.
    """
    answers = answers_in(row.fields)
    if not isinstance(answers, (list, tuple)) or find_field(row.fields, "labels", mapping):
        return row
    if not any(name and field_called(row.fields, name) for name in ("question", mapping.get("text"))):
        return row
    given = [text for answer in answers if (text := text_of(answer)) is not None]
    if not given:
        return row
    best = Counter(given).most_common(1)[0][0]  # equal counts come in the order in which they were met
    return row._replace(fields=row.fields | {"label": (best,) if best.strip() else None})


def given_answers(meta: Mapping[str, Any]) -> list[str] | None:
    """Return all answers that a record keeps, cleaned as labels are; None where it has none."""
    answers = answers_in(meta)
    found = [cleaned(answer) for answer in answers] if isinstance(answers, list) else []
    return [answer for answer in found if answer] or None


def answers_in(fields: Mapping[str, Any]) -> Any:
    """Return what stands in the field `answers`, in capitals or not; None where there is no such field."""
    name = field_called(fields, "answers")
    return None if name is None else fields[name]


def cleaned(answer: Any) -> str | None:
    """Return the words of one answer as a label; None where it has none, or what no label may be."""
    try:
        return clean_text(text_of(answer), "label")
    except RowError:
        return None


def text_of(answer: Any) -> str | None:
    """Return the words of one answer; None where it has none."""
    found = answer.get("answer") if isinstance(answer, dict) else answer
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        try:
            return string_of(found, "label")
        except RowError:
            return None
    return found if isinstance(found, str) else None
