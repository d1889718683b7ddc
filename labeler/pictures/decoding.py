"""Pictures decoded in processes of their own: a file that crashes, fills or hangs its decoder costs itself alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from labeler.pictures.images import Examined, ImageError, Prepared, examine_image, prepare_image, stretch
from labeler.processes import AHEAD, WorkError, in_workers

NEAR = 128  # rows within which a picture that several of them share is decoded once: so many results are kept


class Wanted(NamedTuple):
    """A picture to decode: its file, the sha256 that this must have, its bytes where they are at hand: then no file is read."""

    path: Path | str
    sha256: str | None = None
    data: bytes | None = None


def examine_images(paths: Iterable[Path | None]) -> Generator[Examined | ImageError | None, None, None]:
    """Yield what `ingest` keeps of each picture, or why it cannot be used; None for None. See `decoded`."""
    return decoded(examine_image, (None if path is None else (path,) for path in paths))


def prepare_images(
    pictures: Iterable[Wanted | None],
    side: int,
    ahead: int = AHEAD,
    *,
    looks: bool = False,
) -> Generator[Prepared | ImageError | None, None, None]:
    """Yield what the towers take of each picture, with `looks` its thumbnail too, or why it cannot be used; None for None.

    They are stretched in this process, those over MAX_SENT pixels where they were decoded. See `decoded`.
    """

    def stretched(picture: Prepared) -> Prepared:
        return picture._replace(pixels=stretch(picture.pixels, side))

    items = (None if item is None else (item.path, side, item.sha256, item.data, looks) for item in pictures)
    return decoded(prepare_image, items, ahead=ahead, then=stretched)


def decoded(
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...] | None],
    ahead: int = AHEAD,
    then: Callable[[Any], Any] | None = None,
) -> Generator[Any, None, None]:
    """Yield what `in_workers` yields for pictures: the ImageError of each that `function` refuses, or that ends its process."""
    with closing(in_workers(function, items, ahead=ahead, then=then, yielded=(ImageError, WorkError))) as found:
        for item in found:
            yield ImageError(f"image-{item.code}", str(item)) if isinstance(item, WorkError) else item


def asked_once(ask: Callable[[Iterator[Any]], Iterator[Any]], items: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield what `ask` yields for each of `items`, in order; it is not asked again for what was among the last NEAR of them.

    Rows that share a picture mostly stand together. Equal items are given the very same object. Lazy as `ask` is; None is
    always passed on.
    """
    asked: dict[Any, int] = {}  # what may come again: its number among the items
    waiting: deque[int] = deque()  # of each item that was drawn: the number of the one that was asked for in its place
    unanswered: deque[int] = deque()
    answers: dict[int, Any] = {}
    given = 0

    def questions() -> Iterator[Any]:
        for number, item in enumerate(items):
            if asked and asked[oldest := next(iter(asked))] <= number - NEAR:
                del asked[oldest]
            first = number if item is None else asked.setdefault(item, number)
            waiting.append(first)
            if first == number:
                unanswered.append(number)
                yield item

    def ready() -> Iterator[Any]:
        nonlocal given
        while waiting and waiting[0] in answers:
            yield answers[waiting.popleft()]
            answers.pop(given - NEAR, None)
            given += 1

    for answer in ask(questions()):
        answers[unanswered.popleft()] = answer
        yield from ready()
    yield from ready()  # what came after the last that was asked for
