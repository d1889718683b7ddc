"""Stage `ingest`: any labelled source in, canonical records out, with every row that was left out accounted for.

Rows stream by in chunks: their lines go to a file beside the output, what must be known of all of them at once into
arrays. When all are read, splits are drawn from the arrays and the lines are written again, each with its split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import compress, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
from tqdm import tqdm

from labeler.artifacts import (
    MANIFEST,
    Input,
    Recipe,
    already_made,
    making,
    read_json,
    read_manifest,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_json,
)
from labeler.errors import BadInputError
from labeler.ingest_options import IngestOptions, read_vocabulary
from labeler.paths import refuse_bytes
from labeler.pictures.decoding import asked_once, examine_images
from labeler.pictures.images import Examined, ImageError, read_image_file
from labeler.pictures.kept import Pictures
from labeler.processes import cores, in_workers
from labeler.records import IMAGE_SHA256, Reject, Row, label_set
from labeler.rows.chunks import Chunk, Columns, RowReading, chunk_of, chunk_of_lines, chunk_of_piece, row_labels
from labeler.rows.collecting import Collected, Records
from labeler.rows.lines import json_id, with_meta, without_image
from labeler.rows.profile import (
    counted,
    label_counts,
    left_out,
    none_kept,
    nothing_usable,
    profile_of,
    refuse_strange_names,
    taxonomy_counts,
)
from labeler.rows.selection import chosen_task, rejected, select, write_selected
from labeler.sources import common_root, find_format, read_source
from labeler.sources.answers import UNKNOWN
from labeler.sources.jsonl import PIECE_BYTES, Piece, pieces
from labeler.taxonomy import read_taxonomy, refuse_strangers

ROWS = 4096  # in a chunk of a source that is not read in pieces
SPOOL = ".lines"

log = logging.getLogger("labeler")


class Ingested(NamedTuple):
    """What `ingest` did: where, whether it had been made before, and the counts of `profile.json`."""

    out: Path
    already: bool
    profile: dict[str, Any]


class Rejects:
    """The rows left out so far, counted by code and written to `file`; in strict mode the first ends the stage."""

    def __init__(self, strict: bool, file: BinaryIO | None = None):
        self.strict = strict
        self.file = file
        self.codes: Counter[str] = Counter()
        self.firsts: dict[str, Reject] = {}

    def add(self, reject: Reject) -> None:
        """Keep `reject`; raises BadInputError in strict mode."""
        if self.strict:
            place = f"{reject.source}:{reject.line}" if reject.line else reject.source
            raise BadInputError(f"{place}: {reject.message} [{reject.code}] (--strict stops here)")
        self.codes[reject.code] += 1
        self.firsts.setdefault(reject.code, reject)
        if self.file:  # half surrogates, which a damaged row may hold, are escaped
            line = json.dumps(reject.written(), ensure_ascii=False) + "\n"
            self.file.write(line.encode("utf-8", "backslashreplace"))

    @property
    def first(self) -> Reject | None:
        """Return the first of those with the commonest code, which tells most of what is wrong."""
        return self.firsts[self.codes.most_common(1)[0][0]] if self.codes else None


# What is found out about pictures: an Examined or an ImageError for each path, None for None, in order, lazily.
Look = Callable[[Iterable[Path | None]], Iterator[Examined | ImageError | None]]


def ingest(
    sources: Sequence[Path], out: Path, options: IngestOptions | None = None, *, seed: int = 0, force: bool = False
) -> Ingested:
    """Read labelled sources and publish `records.jsonl`, `labels.json`, `rejects.jsonl` and `profile.json` in `out`.

    Rows that cannot be used are in `rejects.jsonl`; the rest goes on. Splits that are not given are drawn with
    `seed` so that no picture, no text and no group lies in two of them. Pictures that a source brings as bytes are
    written to `pictures/`, named by their sha256. Memory is some hundred bytes a row.

    Raises UsageError for options that cannot be (see `IngestOptions.check`); BadInputError for a path that is not UTF-8, when
    nothing usable is left, when the taxonomy is no tree of two levels or has a name that is no label, when fewer than two
    labels occur, when a fixed split is asked for that the data do not have, or in strict mode at the first row that cannot be
    used.
    """
    options = options or IngestOptions()
    for path in (*sources, out, options.image_folder, options.labels, options.answers, options.taxonomy):
        refuse_bytes(path or "")
    options.check(sources)
    root = common_root(sources, out, options.image_folder, options.fields())
    refuse_bytes(way_to(root, out))
    if not force and (out / MANIFEST).is_file() and (profile := already_ingested(sources, out, options, root, seed)):
        return Ingested(out, True, profile)
    recipe: Recipe
    with making(out, lambda: recipe, content=content_of, stage="ingest") as folder:
        with open(folder / "rejects.jsonl", "wb") as file, open(folder / SPOOL, "w+b") as spool:
            collected, rejects = Collected(spool), Rejects(options.strict, file)
            pictures = Pictures(out, root, folder)
            digest = read_all(sources, options, pictures, collected, rejects, examine_images)
            recipe = recipe_of(sources, options, digest, seed)
            if collected.total or any(isinstance(name, tuple) and name[0] != "mapped" for name in collected.counts):
                refuse_strange_names(options.asked(), collected.counts)
            if not collected.total:
                raise BadInputError(nothing_usable(sources, collected.counts, rejects.codes, rejects.first))
            profile = write_all(folder, collected, pictures, rejects, options, seed)
        (folder / SPOOL).unlink()
        profile["root"] = way_to(root, out)
        write_json(folder / "profile.json", profile)
    return Ingested(out, False, profile)


def already_ingested(
    sources: Sequence[Path], out: Path, options: IngestOptions, root: Path, seed: int
) -> dict[str, Any] | None:
    """Return the profile of the artifact `out` where it was made of the same sources with these options; log why not.

    Rows and pictures are read only where nothing else differs.
    """
    try:
        then = read_manifest(out, "ingest")["inputs"][-1]["sha256"]
    except BadInputError as error:
        log.warning("%s", error)
        return None
    if not already_made(out, recipe_of(sources, options, then, seed)):
        return None
    digest = read_all(sources, options, Pictures(out, root), Collected(), Rejects(options.strict), hash_images)
    if digest != then:
        log.info("%s: an input has changed; making it again", out)
        return None
    profile: dict[str, Any] = read_json(out / "profile.json")
    return profile if profile["root"] == way_to(root, out) else None  # else the sources have been moved


def way_to(root: Path, out: Path) -> str:
    """Return the way from the artifact to the sources' folder, which may be moved together; links are followed first."""
    return os.path.relpath(os.path.realpath(root), os.path.realpath(out))


def content_of(files: dict[str, str]) -> str:
    """Return what stands for the pairs, wherever they lie: paths to the root, and what was left out, do not matter."""
    return sha256_json([files["labels.json"], files["records.jsonl"]])


def write_all(
    folder: Path, collected: Collected, pictures: Pictures, rejects: Rejects, options: IngestOptions, seed: int
) -> dict[str, Any]:
    """Write records, labels and rejects of what was collected; return the profile."""
    records = Records(collected)
    task, parents = chosen_task(records, options.task), read_taxonomy(options.taxonomy)
    if options.taxonomy:
        file = options.labels or options.answers
        refuse_strangers(options.taxonomy, parents, task, records.names, read_vocabulary(file), file)
    selected = select(records, task, options.split, options.drop_leaks, options.top_answers, seed, parents)
    for reject in rejected(records, selected):
        rejects.add(reject)
    if not selected.kept.any():
        raise BadInputError(none_kept(collected.counts["rows"], rejects.codes, rejects.first))
    counts = label_counts(selected.labels, selected.names, selected.kept)
    if options.answers and counts.keys() == {UNKNOWN}:
        raise BadInputError(
            f"{options.answers}: none of its answers is the most frequent one to any of {counts[UNKNOWN]} questions; expected "
            "the vocabulary of these data, or --top-answers N"
        )
    try:
        labels = label_set(counts, task, parents, none=options.allow_unlabelled)
    except BadInputError as error:
        why = left_out(rejects.codes, rejects.first) if rejects.codes else ""
        raise BadInputError(f"{error}{why}") from None
    write_json(folder / "labels.json", labels.model_dump())
    with ThreadPoolExecutor(1) as beside:
        profile = beside.submit(profile_of, records, selected)
        write_selected(folder / "records.jsonl", records, selected)
    pictures.keep_only(records.image(row) or "" for row in np.flatnonzero(selected.kept).tolist())
    found = counted(collected.counts, rejects.codes) | profile.result()
    if options.allow_unlabelled:
        found["unlabelled"] = int((records.columns.label_count[selected.kept] < 0).sum())
    return found | taxonomy_counts(labels, selected) if options.taxonomy else found


def recipe_of(sources: Sequence[Path], options: IngestOptions, digest: str, seed: int) -> Recipe:
    """Return the recipe: the sources' sha256, and that of all that was read from them."""
    paths = [*sources, *(path for path in (options.labels, options.answers, options.taxonomy) if path)]
    files = [Input(str(path), sha256_file(path)) for path in paths if path.is_file()]
    inputs = (*files, Input("records and pictures", digest))
    return Recipe("ingest", inputs, options.arguments(), seed, defaults=IngestOptions().arguments())


def read_all(
    sources: Sequence[Path],
    options: IngestOptions,
    pictures: Pictures,
    collected: Collected,
    rejects: Rejects,
    look: Look,
) -> str:
    """Read all records into `collected`, and what cannot be one into `rejects`; return a sha256 of rows and pictures.

    The sha256 does not depend on whether `look` decodes the pictures or only reads their files.
    """
    digest = hashlib.sha256()
    plain_files = all(source.is_file() for source in sources)  # then their own sha256 says all but what is in pictures
    how = options.row_reading(pictures.root)
    chunks = (chunk for source in sources for chunk in chunks_of(source, how, pictures))
    with tqdm(desc="reading", unit="row", disable=None) as bar, closing(with_pictures(chunks, pictures, look)) as found:
        for chunk in found:
            for reject in chunk.rejects:
                rejects.add(reject)
                digest.update(f"{reject.line} {reject.code}\n".encode())
            if not plain_files or chunk.images:
                digest.update(chunk.lines)
                if chunk.several or (chunk.columns.split >= 0).any():  # which no line says yet
                    digest.update(bytes([chunk.several]) + chunk.columns.split.tobytes())
            collected.add(without_broken(chunk, options.allow_missing_image, rejects))
            bar.update(chunk.counts["rows"])
    return digest.hexdigest()


def chunks_of(source: Path, how: RowReading, pictures: Pictures) -> Iterator[Chunk]:
    """Yield the rows of a source in chunks; those of a large jsonl file are worked by a process a core."""
    if find_format(source, how.reading.format) != "jsonl":
        rows = kept_pictures(read_source(source, how.reading), pictures)
        while batch := list(islice(rows, ROWS)):
            yield chunk_of(batch, how)
    elif source.stat().st_size < 8 * PIECE_BYTES:
        for piece in pieces(source):
            yield chunk_of_piece(piece, how)
    else:
        yield from in_processes(pieces(source), how)


def kept_pictures(rows: Iterable[Row | Reject], pictures: Pictures) -> Iterator[Row | Reject]:
    """Yield the rows, those that bring their picture as bytes after these are kept."""
    for row in rows:
        try:
            yield row if isinstance(row, Reject) else pictures.keep(row)
        except ImageError as error:
            yield Reject(row.source, row.line, row.shown_id(), error.code, str(error))  # type: ignore[union-attr]


def in_processes(work: Iterable[Piece], how: RowReading) -> Generator[Chunk, None, None]:
    """Yield the chunk of each piece, in order, by a process a core; raises LabelerError where one dies of a piece."""
    named = ((f"{piece.path}:{piece.first}", piece, how) for piece in work)
    return in_workers(chunk_of_lines, named, ahead=4 * cores())


def with_pictures(chunks: Iterable[Chunk], pictures: Pictures, look: Look) -> Generator[Chunk, None, None]:
    """Yield the chunks, each with what is known of its pictures; while one is waited for, the next are looked at."""
    waiting: deque[Chunk] = deque()

    def paths() -> Iterator[Path | None]:
        for chunk in chunks:
            waiting.append(chunk)
            yield from [image and pictures.file_of(image) for image in chunk.images] or [None]  # type: ignore[misc]

    found = asked_once(look, paths())
    for first in found:
        chunk = waiting.popleft()
        rest = islice(found, max(len(chunk.images) - 1, 0))
        yield examined(chunk, pictures, [first, *rest]) if chunk.images else chunk


def examined(chunk: Chunk, pictures: Pictures, found: list[Examined | ImageError | None]) -> Chunk:
    """Return the chunk with what was found out about each record's picture, None where it has none."""
    lines, columns = chunk.lines.splitlines(keepends=True), chunk.columns
    for number, picture in enumerate(found):
        if picture is None:
            continue
        if isinstance(picture, Examined):
            sha256: str | None = picture.sha256
            columns.width[number], columns.height[number] = picture.width, picture.height
        else:
            image = chunk.images[number] or ""
            # those that came as bytes are named by it, and are gone where no row that was kept has them
            sha256 = Path(image).stem if pictures.holds(image) else sha256_image(pictures.file_of(image))
        if sha256:
            lines[number] = with_meta(lines[number], IMAGE_SHA256, sha256)
            columns.image[number] = int(sha256[:16], 16) or 1
            columns.size[number] = len(lines[number])
    return chunk._replace(
        lines=b"".join(lines),
        looks=[bytes.fromhex(item.look) if isinstance(item, Examined) and item.look else None for item in found],
        broken={number: item for number, item in enumerate(found) if isinstance(item, ImageError)},
    )


def sha256_image(path: Path) -> str | None:
    """Return the sha256 of an image's file, None where it cannot be read."""
    try:
        return sha256_bytes(read_image_file(path))
    except ImageError:
        return None


def hash_images(paths: Iterable[Path | None]) -> Iterator[Examined | ImageError | None]:
    """Yield as much of each picture as tells whether its file is still the same."""
    for path in paths:
        try:
            yield None if path is None else Examined(sha256_bytes(read_image_file(path)), 0, 0, None)
        except ImageError as error:
            yield error


def without_broken(chunk: Chunk, allow_missing: bool, rejects: Rejects) -> Chunk:
    """Return the chunk without the records whose picture cannot be used, or without that picture where it may be missing."""
    if not chunk.broken:
        return chunk
    lines, columns = chunk.lines.splitlines(keepends=True), chunk.columns
    kept = np.ones(len(lines), bool)
    for number, error in chunk.broken.items():
        if error.code == "image-missing" and allow_missing and columns.characters[number] >= 0:
            lines[number] = without_image(lines[number])
            columns.size[number] = len(lines[number])
            continue
        kept[number] = False
        where = chunk.sources[columns.source[number]], int(columns.line[number])
        identity = orjson.loads(json_id(lines[number]))
        rejects.add(Reject(*where, identity, error.code, str(error)))
    return chunk._replace(
        lines=b"".join(compress(lines, kept)),
        looks=list(compress(chunk.looks, kept)),
        columns=Columns(*(values[kept] for values in columns)),
        label_codes=row_labels(chunk.label_codes, columns).of(kept).codes,
    )
