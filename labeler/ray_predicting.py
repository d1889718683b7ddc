"""Labelling by several processes, on one machine or many: Ray Data over the windows that one process would label.

A window of rows goes to one of the workers, which decodes their pictures, labels them and sends their lines back; these are
yielded in the order of the rows. So shards, and what a kill costs, are the same as without Ray, and so is every line: a window
decides its batches. A window whose worker dies is labelled by another. Workers of other machines read the model and the
pictures by the same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from labeler.errors import LabelerError
from labeler.items import read_items
from labeler.labeller import Labeller, Settings
from labeler.output import LineFormat
from labeler.ray_cluster import check_ray, cpus_each, ray_running
from labeler.records import Reject, Row
from labeler.shards import Line

if TYPE_CHECKING:
    import numpy as np

ROUND = 64 << 20  # bytes of rows that are handed over at a time, some 100,000 rows without pictures of their own


def label_on_ray(
    rows: Iterable[Row | Reject], settings: Settings, written: LineFormat, window: int, *,
    workers: int | None = None, address: str | None = None,
) -> Generator[list[Line], None, None]:  # fmt: skip
    """Yield the lines of rows, in order, a window of rows at a time.

    `workers` processes label, by default one for every GPU of the cluster, or one for every machine. The cluster is that at
    `address`, or one of this machine's own that ends with the iterator.

    Raises UsageError where Ray is not installed, BadInputError where no cluster answers, and what a worker raised.
    """
    check_ray("--engine ray needs")
    with ray_running(address, workers or 1) as ray:
        there = ray.cluster_resources()
        count = workers or int(there.get("GPU", 0)) or sum(node["Alive"] for node in ray.nodes())
        resources = {"num_cpus": cpus_each(ray.nodes(), count), "num_gpus": int(there.get("GPU", 0) >= count)}
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        for windows in rounds(rows, window, 2 * count):
            done = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
                Worker, fn_constructor_args=(settings, written, os.getcwd()), batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(count, len(windows))), **resources,
            )  # fmt: skip
            for row in done.iter_rows():
                yield lines_in(row)


def rounds(rows: Iterable[Row | Reject], window: int, least: int = 1) -> Iterator[list[dict[str, bytes]]]:
    """Yield windows of rows, as many at a time as are about ROUND bytes, and `least`: what Ray is given is held in memory.

    Workers open the model anew for each round, and rows may bring their pictures: then a window alone is ROUND bytes.
    """
    rows, held, size = iter(rows), [], 0
    while chunk := list(islice(rows, window)):
        held.append({"rows": pickle.dumps(chunk)})
        size += len(held[-1]["rows"])
        if size >= ROUND and len(held) >= least:
            yield held
            held, size = [], 0
    if held:
        yield held


def lines_in(row: dict[str, bytes]) -> list[Line]:
    """Return the lines that a worker sent; raises the LabelerError that it ended in."""
    found = pickle.loads(row["lines"])
    if isinstance(found, LabelerError):
        raise found
    return [Line(*line) for line in found]


class Worker:
    """A process that labels windows of rows, each pickled in a batch of one."""

    def __init__(self, settings: Settings, written: LineFormat, folder: str):
        """Open nothing yet: what is raised here would be said by Ray, and over many lines."""
        self.settings, self.written = settings, written
        self.labeller: Labeller | None = None
        with suppress(OSError):  # on another machine there may be no such place; relative paths need it
            os.chdir(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Return the lines of the window, or the LabelerError that it ended in."""
        found: Any
        try:
            found = [tuple(line) for line in self.lines(pickle.loads(batch["rows"][0]))]
        except LabelerError as error:
            found = error
        return {"lines": [pickle.dumps(found)]}

    def lines(self, rows: list[Row | Reject]) -> list[Line]:
        """Return the lines of rows."""
        self.labeller = self.labeller or Labeller(self.settings)
        with closing(read_items(rows, self.settings.reading, self.labeller.engine.size, self.settings.ahead)) as items:
            return [self.written(line) for line in self.labeller(list(items))]
