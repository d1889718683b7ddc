"""Items to lines: what an engine says of them, and the labels that this stands for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labeler.decisions import Rule, promised
from labeler.encoders.weights import first_line
from labeler.engines import Choice, Engine, open_engine
from labeler.errors import LabelerError
from labeler.evaluation import NEVER, scores_of, settle
from labeler.items import Item, ItemReading
from labeler.memory import lacks_memory
from labeler.taxonomy import taxonomy_of

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("labeler")

# Items that are labelled together, and one shard. Batches are made of one window's items, sorted by their length: so that a
# window alone decides what its lines are, to the last digit, whichever were labelled before by this run or another.
WINDOW = 512


class Settings(NamedTuple):
    """How items are labelled, in words that another process understands; see `labeler.predicting.predict`.

    rule: by which logits become labels; reading: how rows become items; least: what a label must score to be given, None:
    nothing; ahead: how many pictures are decoded before they are labelled; choice: what computes, None: PyTorch.
    """

    model: Path
    rule: Rule
    reading: ItemReading
    device: str = "auto"
    batch_size: int = 32
    least: float | None = None
    ahead: int = WINDOW
    choice: Choice | None = None


class Labeller:
    """An engine with what makes lines of its logits."""

    def __init__(self, settings: Settings, engine: Engine | None = None):
        """Open the engine of `settings`, unless it is given."""
        self.settings, self.rule, self.batch_size = settings, settings.rule, settings.batch_size
        self.engine = engine or open_engine(settings.choice or Choice(settings.model), settings.device)

    def logits(self, items: Sequence[Item]) -> np.ndarray:
        """Return logits [N, L] of items; where memory does not suffice for a batch, of halves of it, from then on.

        Raises LabelerError where it does not suffice for one item.
        """
        asked = self.batch_size
        while True:
            try:
                values = self.engine.logits(items, self.batch_size)
                break
            except Exception as error:  # onnxruntime's are no RuntimeError
                if not lacks_memory(error):
                    raise
                if self.batch_size == 1:
                    raise LabelerError(f"memory does not suffice for a single item ({first_line(error)}); end other "
                                       "programs, or take a smaller model") from error  # fmt: skip
            self.batch_size //= 2  # out of the block, so that the error's frames hold no memory any more
        if self.batch_size < asked:
            log.warning("memory does not suffice for batches of %d: going on with %d (--batch-size %d asks for that)",
                        asked, self.batch_size, self.batch_size)  # fmt: skip
        return values

    def __call__(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """Yield the output line of every item, in order; labels that score less than the least are withheld."""
        usable = [item for item in items if item.error is None]
        taxonomy, least = taxonomy_of(self.rule.label_set), self.settings.least
        if usable:
            values = scores_of(taxonomy.task, self.logits(usable), self.rule.temperature)
            settled, chosen = settle(taxonomy, values, self.rule.thresholds)
            given = chosen if least is None else chosen & (settled >= least)
            withheld = (chosen & ~given).any(axis=1)
            scores, flags = taxonomy.scores(settled).tolist(), taxonomy.flags(given)
        row = 0  # among the usable items
        for item in items:
            record = item.record
            line: dict[str, Any] = {
                "id": record.id,
                "image": record.image,
                "text": record.text,
                "labels": [],
                "scores": {},
                **(item.carried or {}),
            }
            line["model"] = str(self.settings.model)
            line["error"] = item.error
            if taxonomy.apart:
                line["label"] = None
            if least is not None:
                line["review"] = False
            if item.error is None:
                line["scores"] = dict(zip(taxonomy.names, scores[row], strict=True))
                line["labels"] = [name for name, one in zip(taxonomy.names, flags[row], strict=True) if one]
                if taxonomy.apart and given[row].any():
                    line["label"] = self.rule.label_set.names[given[row].argmax()]
                if least is not None:
                    line["review"] = bool(withheld[row])
                row += 1
            yield line


def least_score(rule: Rule, precision: float) -> float:
    """Return what a label must score to be given with the precision; above every score where nothing can be promised."""
    given = promised(rule, precision)
    if given.threshold is None:
        log.warning("none of %d labels on the validation split are sure enough to promise a precision of %g: everything is left "
                    "for review", given.total, precision)  # fmt: skip
        return NEVER
    log.info("precision %g: %d of %d labels on the validation split score %.3f or more, and %d of them are right",
             precision, given.n, given.total, given.threshold, given.right)  # fmt: skip
    return given.threshold
