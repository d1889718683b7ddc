"""Hugging Face data sets, streamed through `datasets`: `hub:NAME`, or `hub:FOLDER` with a copy of one.

What follows the name stands in the source itself, `hub:NAME:CONFIG:SPLIT`, since several sources may be given at once and
`--split` already says how ingest splits; not after an `@`, which names a revision on the hub. No code of a data set is run:
`datasets` has read no scripts since version 4.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from labeler.encoders.weights import hub_address, unreachable
from labeler.errors import BadInputError
from labeler.pictures.images import ImageError, read_image_file, resolve_image
from labeler.records import Reject, Row, find_field
from labeler.sources.columns import PICTURE_PARTS, class_name, named_picture, picture_column
from labeler.values import SPLIT_ALIASES

PREFIX = "hub:"
# a picture of the data set itself, in one of its archives or by itself
FILE_OF = r"(?:(?:zip|tar)://[^:]*::)?hf://datasets/{}@[^:]*"

log = logging.getLogger("labeler")


class Source(NamedTuple):
    """What a source's words say: the data set's name or folder, its configuration, its split; empty where not given."""

    name: str
    config: str = ""
    split: str = ""


def claims(path: Path) -> bool:
    """Return whether `path` is no path but the name of a data set on a hub."""
    return str(path).startswith(PREFIX)


def parse(path: Path) -> Source:
    """Return what `hub:NAME:CONFIG:SPLIT` says; raises BadInputError where it says more, or nothing."""
    name, *others = str(path).removeprefix(PREFIX).split(":")
    if not name or len(others) > 2:
        raise BadInputError(
            f"{path}: expected hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT (CONFIG may be empty)"
        )
    return Source(name, *others)


def root_of(path: Path) -> Path:
    """Return the folder to which image paths in a data set are relative; of one on a hub there is none."""
    name = parse(path).name
    return Path(name) if Path(name).is_dir() else path


def read(path: Path, image: str | None = None, identity: str | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of every split of a data set, or of the one that is named, a few in memory at a time.

    Their ids are SPLIT/ID (the field `identity`, or one that an alias names), or SPLIT/NUMBER, since splits number their rows
    each from the start. With several splits, each row has its own as `split`; with one, none, so that train, validation and test
    are drawn. The picture is the column of images that `image` names, or that an alias names, or the only one. Numbers of a
    ClassLabel become names, lists of them lists of names.

    Raises BadInputError: no such data set, configuration or split; the hub out of reach (within 10 s); a split that is
    none of train, validation and test beside others; a picture's column not found among several.
    """
    source = parse(path)
    splits = load(path, source)
    unknown = [name for name in splits if name not in SPLIT_ALIASES]
    if len(splits) > 1 and unknown:
        raise BadInputError(
            f"{path}: the split {unknown[0]!r} is none of train, validation, test; name one split of {', '.join(splits)}: "
            f"hub:{source.name}:{source.config}:SPLIT"
        )
    for name, dataset in splits.items():
        place = f"{PREFIX}{source.name}:{source.config}:{name}"
        given = {"split": name} if len(splits) > 1 else {}
        yield from read_split(place, name, dataset, Path(source.name), image, identity, given)


def load(path: Path, source: Source) -> dict[str, Any]:
    """Return {split: its rows as a stream}; raises BadInputError where there is no such data set, or it is out of reach."""
    local = Path(source.name).is_dir()
    if not local and source.name.startswith((".", "/")):
        raise BadInputError(f"{path}: no such folder")
    problem = None if local else unreachable(hub_address())
    if problem:
        message = f"the data set {source.name!r} is no folder here, and its hub is out of reach ({problem})"
        raise BadInputError(f"{path}: {message}; {local_way(source)}")
    import datasets
    from pyarrow.dataset import ParquetFragmentScanOptions

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        name = os.path.abspath(source.name) if local else source.name
        builder = datasets.load_dataset_builder(name, source.config or None)
        if hasattr(builder.config, "fragment_scan_options"):  # parquet, of which it would hold whole files
            builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        found = builder.as_streaming_dataset(split=source.split or None)
    except Exception as error:  # the library raises many types
        advice = "" if local else f"; {local_way(source)}"
        raise BadInputError(f"{path}: no data set that can be read ({first_line(error)}){advice}") from error
    return {source.split: found} if source.split else dict(found)


def local_way(source: Source) -> str:
    """Return how to read a data set where there is no hub."""
    return (
        f"where there is a network, `hf download --repo-type dataset {source.name} --local-dir FOLDER` makes a copy, which "
        "`labeler ingest hub:FOLDER` reads"
    )


def first_line(error: Exception) -> str:
    """Return an error's first line, its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def read_split(
    place: str, split: str, dataset: Any, folder: Path, image: str | None, identity: str | None, given: dict[str, str]
) -> Iterator[Row | Reject]:
    """Yield the rows of one split; `place` names it, `folder` holds the data set where it is a local one."""
    number = 0
    try:
        dataset = dataset if dataset.features else dataset._resolve_features()  # of csv, from the first rows
        features = dataset.features
        picture = picture_column(place, [name for name, feature in features.items() if is_picture(feature)], image)
        unused = [name for name, feature in features.items() if name != picture and not is_plain(feature)]
        if unused:
            log.info("%s: passed over: %s", place, ", ".join(unused))
        named = {name: namer for name, feature in features.items() if (namer := names_of(feature))}
        for fields in dataset.decode(False):  # its remove_columns would decode every picture on the way
            number += 1
            found = {name: named[name](value) if name in named else value
                     for name, value in fields.items() if name not in unused}  # fmt: skip
            key = find_field(found, "id", {"id": identity} if identity else {})
            key = key if key in found else "id"
            found[key] = f"{split}/{number if found.get(key) is None else found[key]}"
            yield with_picture(Row(place, number, found | given), picture, folder)
    except BadInputError:
        raise
    except Exception as error:  # the library and its file systems raise many types
        raise BadInputError(f"{place}: after row {number}: cannot be read ({first_line(error)})") from error


def is_picture(feature: Any) -> bool:
    """Return whether a column holds pictures, videos or bytes, one a row; structs of bytes and path are pictures too."""
    if isinstance(feature, dict) and feature and feature.keys() <= PICTURE_PARTS.keys():
        kinds = {name: str(getattr(part, "dtype", "")).removeprefix("large_") for name, part in feature.items()}
        return all(kind in (PICTURE_PARTS[name], "null") for name, kind in kinds.items())
    return type(feature).__name__ in ("Image", "Video") or getattr(feature, "dtype", "") in ("binary", "large_binary")


def is_plain(feature: Any) -> bool:
    """Return whether a column holds strings, numbers, classes, or containers of these; lists of floats are vectors."""
    inner = inner_of(feature)
    if is_picture(feature):
        return False
    if isinstance(feature, dict):
        return all(is_plain(value) for value in feature.values())
    if inner is not None:
        return is_plain(inner) and not str(getattr(inner, "dtype", "")).startswith("float")
    return type(feature).__name__ in ("Value", "ClassLabel")


def inner_of(feature: Any) -> Any:
    """Return the feature of a list's items; None for any other feature."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def names_of(feature: Any) -> Callable[[Any], Any] | None:
    """Return a function from a feature's value to label names: of a ClassLabel or a list of them; None for any other."""
    inner: Any = inner_of(feature)
    if type(feature).__name__ == "ClassLabel":
        return lambda value: class_name(feature.names, value)
    if type(inner).__name__ == "ClassLabel":
        return lambda values: None if values is None else [class_name(inner.names, value) for value in values]
    return None


def with_picture(row: Row, column: str | None, folder: Path) -> Row | Reject:
    """Return the row with its picture's bytes, and the picture's name in their place.

    A picture without bytes is a file: below `folder`, or of the data set on its hub. Any other path is a reject,
    since a table could name any file of this machine.
    """
    value = row.fields.get(column) if column else None
    if column is None or value is None:
        return row
    name, data = named_picture(value)
    try:
        if data is None and name is not None:
            data = file_bytes(name, folder)
    except (ImageError, OSError) as error:
        return Reject(row.source, row.line, row.shown_id(), getattr(error, "code", "image-unreadable"), str(error))
    shown = None if name is None else Path(name).name
    return row._replace(fields=row.fields | {column: shown}, picture=data)


def file_bytes(name: str, folder: Path) -> bytes:
    """Return the bytes of a picture that a data set names; raises ImageError or OSError where it may not or cannot be read."""
    if folder.is_dir():
        return read_image_file(resolve_image(folder, name))
    if not re.fullmatch(FILE_OF.format(re.escape(folder.as_posix())), name):
        raise ImageError("image-outside", f"{name}: no file of the data set {folder}")
    from datasets.download.streaming_download_manager import xopen

    with xopen(name, "rb") as file:
        return file.read()
