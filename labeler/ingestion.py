"""Stage `ingest`: any labelled source in, canonical records out, with every row that was left out accounted for."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

from tqdm import tqdm

from labeler.artifacts import (
    BadInputError,
    Input,
    Recipe,
    UsageError,
    already_made,
    making,
    sha256_bytes,
    sha256_file,
    sha256_json,
)
from labeler.images import ImageError, difference_hash, load_image, read_image_file, resolve_image
from labeler.pictures import Pictures, collecting
from labeler.profile import counted, profile_of
from labeler.records import (
    SPLITS,
    Record,
    Reject,
    Row,
    RowError,
    Split,
    Task,
    clean_text,
    find_field,
    jsonable,
    label_set,
    record_from,
    write_records,
)
from labeler.sources import Reading, common_root, image_root, read_source
from labeler.sources.answers import UNKNOWN
from labeler.splits import Key, group_rows, leaking, split_groups

log = logging.getLogger("labeler")


@dataclass(frozen=True)
class IngestOptions:
    """How `ingest` reads a source; every field is recorded in the manifest."""

    label: str | None = None
    task: str = "auto"
    mapping: dict[str, str] = field(default_factory=dict)
    separator: str = "|"
    split: str = "auto"
    group_by: str | None = None
    allow_missing_image: bool = False
    allow_outside: bool = False
    strict: bool = False
    format: str = "auto"
    encoding: str | None = None
    fix_text: bool = False
    drop_leaks: bool = False
    frames: int = 1
    caption: str = "longest"
    labels: Path | None = None
    answers: Path | None = None
    top_answers: int | None = None

    def reading(self) -> Reading:
        """Return how the sources are read."""
        return Reading(self.format, self.encoding, self.label, self.frames, self.caption, self.fields())

    def fields(self) -> dict[str, str]:
        """Return {our field: their field} from `--map`, `--label` and `--group-by`."""
        named = {"labels": self.label, "group": self.group_by}
        return self.mapping | {ours: theirs for ours, theirs in named.items() if theirs}


class Candidate(NamedTuple):
    """A row on its way to a record: the row, the record, its image file and that file's sha256."""

    row: Row
    record: Record
    path: Path | None = None
    sha256: str | None = None
    size: tuple[int, int] | None = None
    look: str | None = None


class Ingested(NamedTuple):
    """What `ingest` did: where, whether it had been made before, and the counts of `profile.json`."""

    out: Path
    already: bool
    profile: dict[str, Any]


class Rejects:
    """The rows left out so far; in strict mode the first one ends the stage."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.items: list[Reject] = []

    def add(self, reject: Reject) -> None:
        """Keep `reject`; raises BadInputError in strict mode."""
        if self.strict:
            raise BadInputError(
                f"{reject.source}:{reject.line}: {reject.message} [{reject.code}] (--strict stops here)"
            )
        self.items.append(reject)

    def add_row(self, row: Row, identity: str | None, code: str, message: str) -> None:
        """Keep a row that was read but cannot be used."""
        self.add(Reject(row.source, row.line, identity, code, message))


def ingest(
    sources: Sequence[Path], out: Path, options: IngestOptions | None = None, *, seed: int = 0, force: bool = False
) -> Ingested:
    """Read labelled sources and publish `records.jsonl`, `labels.json`, `rejects.jsonl` and `profile.json` in `out`.

    Rows that cannot be used are in `rejects.jsonl`; the rest goes on. Splits that are not given are drawn with
    `seed` so that no picture, no text and no group lies in two of them. Pictures that a source brings as bytes are
    written to `pictures/`, named by their sha256.

    Raises UsageError for shares that are none, or several vocabularies; BadInputError when nothing usable is left,
    when fewer than two labels occur, when a fixed split is asked for that the data do not have, or in strict mode
    at the first row that cannot be used.
    """
    options = options or IngestOptions()
    if options.split not in ("auto", "keep"):
        parse_fractions(options.split)  # before any work
    if options.frames < 1:
        raise UsageError(f"--frames {options.frames}: expected 1 or more")
    if sum(bool(given) for given in (options.labels, options.answers, options.top_answers)) > 1:
        raise UsageError("--labels, --answers and --top-answers: expected one of them")
    root = common_root(sources, out)
    with collecting(out, root) as pictures:
        return ingest_rows(sources, out, options, root, pictures, seed=seed, force=force)


def ingest_rows(
    sources: Sequence[Path],
    out: Path,
    options: IngestOptions,
    root: Path,
    pictures: Pictures,
    *,
    seed: int,
    force: bool,
) -> Ingested:
    """Do what `ingest` says, with images relative to `root` and a place for `pictures` that come as bytes."""
    rejects = Rejects(options.strict)
    vocabulary = read_vocabulary(options.labels or options.answers)
    rows, counts = read_rows(sources, options.reading(), rejects, pictures)
    if options.fix_text:
        fixed = [fixed_text(row, options) for row in rows]
        counts["fixed_texts"] = sum(a is not b for a, b in zip(rows, fixed, strict=True))
        rows = fixed
    candidates = unique([item for row in rows if (item := candidate(row, root, options, rejects, pictures))], rejects)
    candidates = hash_images(candidates, options, rejects)
    if options.labels:
        candidates = known_labels(candidates, options.labels, vocabulary, rejects)
    files = [*sources, *(path for path in (options.labels, options.answers) if path)]
    recipe = Recipe("ingest", input_hashes(files, candidates, rejects.items), arguments(options), seed)
    if not force and already_made(out, recipe):
        return Ingested(out, True, json.loads((out / "profile.json").read_text(encoding="utf-8")))
    candidates = decode_images(candidates, rejects)
    if not candidates:
        reasons = Counter(reject.code for reject in rejects.items)
        raise BadInputError(f"{sources[0]}: no usable row among {counts['rows']} ({dict(reasons)})")
    task = choose_task(options.task, rows, options)
    candidates = one_label_each(candidates, task, rejects)
    if options.drop_leaks:
        candidates = without_leaks(candidates, options, rejects)
    keys = [leak_keys(item) for item in candidates]
    records, how = assign_splits(candidates, keys, options, seed)
    if options.answers or options.top_answers:
        records = with_unknown(records, vocabulary or frequent_labels(records, options.top_answers))
    labels = label_set(records, task)
    profile = counted(counts, rejects.items) | profile_of(
        records, keys, [item.size for item in candidates if item.size]
    )
    profile |= {"split": how, "task": task, "root": os.path.relpath(root, out.absolute())}
    # the same pairs are the same data wherever they lie: paths to the root, and counts of what was left out, do not matter
    content = sha256_json([labels.model_dump(), [pictures.placeless(record).model_dump() for record in records]])
    with making(out, recipe, content=content) as folder:
        pictures.publish(folder, records)
        write_records(folder / "records.jsonl", records)
        (folder / "labels.json").write_text(labels.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_jsonl(folder / "rejects.jsonl", (reject._asdict() for reject in rejects.items))
        (folder / "profile.json").write_text(json.dumps(profile, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return Ingested(out, False, profile)


def write_jsonl(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line; half surrogates, which a damaged row may hold, are escaped."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read_rows(
    sources: Sequence[Path], how: Reading, rejects: Rejects, pictures: Pictures
) -> tuple[list[Row], Counter[str]]:
    """Return every readable row, and counts of the rows and of what their readers had to guess; bytes go to `pictures`."""
    rows: list[Row] = []
    counts: Counter[str] = Counter(rows=0)
    for source in sources:
        for item in read_source(source, how):
            counts["rows"] += 1
            if isinstance(item, Reject):
                rejects.add(item)
                continue
            counts.update(item.notes)
            try:
                rows.append(pictures.keep(item))
            except ImageError as error:
                rejects.add_row(item, item.shown_id, error.code, str(error))
    return rows, counts


def candidate(row: Row, root: Path, options: IngestOptions, rejects: Rejects, pictures: Pictures) -> Candidate | None:
    """Return the row as a candidate, its image's path made relative to `root`; None where it was rejected."""
    try:
        record = record_from(row, options.fields(), separator=options.separator)
        if isinstance(row.picture, Path):
            return Candidate(row, record.model_copy(update={"image": pictures.image_of(row.picture)}), row.picture)
        if record.image is None:
            return Candidate(row, record)
        path = resolve_image(image_root(Path(row.source)), record.image, allow_outside=options.allow_outside)
        relative = Path(os.path.relpath(path, root)).as_posix()
        return Candidate(row, record.model_copy(update={"image": relative}), path)
    except (RowError, ImageError) as error:
        rejects.add_row(row, row.shown_id, error.code, str(error))
        return None


def fixed_text(row: Row, options: IngestOptions) -> Row:
    """Return the row with its text repaired where one encoding was taken for another; the row itself where none was."""
    from ftfy import fix_text

    name = find_field(row.fields, "text", options.fields())
    if name is None or not isinstance(row.fields[name], str):
        return row
    # only what is broken: curly quotes, ligatures, full-width letters and HTML are the author's own
    fixed = fix_text(
        row.fields[name], unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False,
        fix_character_width=False, fix_line_breaks=False, normalization=None,
    )  # fmt: skip
    return row if fixed == row.fields[name] else row._replace(fields=row.fields | {name: fixed})


def unique(candidates: list[Candidate], rejects: Rejects) -> list[Candidate]:
    """Return the candidates with each id once: equal rows are one row, differing rows are all rejected."""
    by_id: dict[str, list[Candidate]] = {}
    for item in candidates:
        by_id.setdefault(item.record.id, []).append(item)
    kept = []
    for identity, items in by_id.items():
        if any(item.record != items[0].record for item in items):
            for item in items:
                rejects.add_row(
                    item.row, identity, "id-conflict", f"the id {identity!r} stands on {len(items)} rows that differ"
                )
            continue
        kept.append(items[0])
        for item in items[1:]:
            rejects.add_row(
                item.row, identity, "duplicate", f"the same row as {items[0].row.source}:{items[0].row.line}"
            )
    return kept


def in_threads(function: Any, items: Sequence[Any], what: str) -> list[Any]:
    """Return `function` of every item, in order, worked by a thread a core, with a progress bar on a terminal."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=what, unit="pair", disable=None))


def hash_images(candidates: list[Candidate], options: IngestOptions, rejects: Rejects) -> list[Candidate]:
    """Return the candidates with their image files' sha256; those whose file cannot be read are rejected."""

    def hashed(item: Candidate) -> Candidate | ImageError:
        try:
            return item if item.path is None else item._replace(sha256=sha256_bytes(read_image_file(item.path)))
        except ImageError as error:
            return error

    kept = []
    for item, result in zip(candidates, in_threads(hashed, candidates, "reading pictures"), strict=True):
        if isinstance(result, Candidate):
            kept.append(result)
        elif result.code == "image-missing" and options.allow_missing_image and item.record.text:
            kept.append(item._replace(path=None, record=item.record.model_copy(update={"image": None})))
        else:
            rejects.add_row(item.row, item.record.id, result.code, str(result))
    return kept


def decode_images(candidates: list[Candidate], rejects: Rejects) -> list[Candidate]:
    """Return the candidates whose pictures decode, with each picture's size and difference hash."""

    def decoded(item: Candidate) -> Candidate | ImageError:
        if item.path is None:
            return item
        try:
            image = load_image(item.path)
        except ImageError as error:
            return error
        return item._replace(size=image.size, look=difference_hash(image))

    kept = []
    for item, result in zip(candidates, in_threads(decoded, candidates, "checking pictures"), strict=True):
        if isinstance(result, Candidate):
            kept.append(result)
        else:
            rejects.add_row(item.row, item.record.id, result.code, f"{item.record.image}: {result}")
    return kept


def input_hashes(
    sources: Sequence[Path], candidates: Sequence[Candidate], rejects: Sequence[Reject]
) -> tuple[Input, ...]:
    """Return the sources' sha256, and one over the records read, the sha256 of their image files and the rejects."""
    files = [Input(str(source), sha256_file(source)) for source in sources if source.is_file()]
    rows: list[Any] = [[item.record.model_dump(mode="json"), item.sha256] for item in candidates]
    rows += [[reject.line, reject.code] for reject in rejects]
    return (*files, Input("records and pictures", sha256_json(rows)))


def arguments(options: IngestOptions) -> dict[str, Any]:
    """Return the options as a manifest records them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def read_vocabulary(path: Path | None) -> set[str]:
    """Return the labels or answers of a vocabulary file, one a line, cleaned like labels; none where there is no file.

    Raises BadInputError where it cannot be read or has none.
    """
    if path is None:
        return set()
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
        names = {name for line in lines if (name := clean_text(line, "label"))}
    except (OSError, UnicodeDecodeError, RowError) as error:
        raise BadInputError(f"{path}: expected a label a line in UTF-8 ({error})") from error
    if not names:
        raise BadInputError(f"{path}: no label in it; expected one a line")
    return names


def known_labels(candidates: list[Candidate], path: Path, vocabulary: set[str], rejects: Rejects) -> list[Candidate]:
    """Return the candidates whose labels all stand in the vocabulary of the file `path`."""
    kept = []
    for item in candidates:
        unknown = next((name for name in item.record.labels if name not in vocabulary), None)
        if unknown is None:
            kept.append(item)
            continue
        close = get_close_matches(unknown, sorted(vocabulary), n=1, cutoff=0)[0]
        message = f"the label {unknown!r} is not in {path}; the closest there is {close!r}"
        rejects.add_row(item.row, item.record.id, "label-unknown", message)
    return kept


def frequent_labels(records: Sequence[Record], count: int | None) -> set[str]:
    """Return the `count` labels that most train rows have, ties by name."""
    counts = Counter(name for record in records if record.split == "train" for name in record.labels)
    return set(sorted(counts, key=lambda name: (-counts[name], name))[:count])


def with_unknown(records: Sequence[Record], vocabulary: set[str]) -> list[Record]:
    """Return the records with UNKNOWN in place of every label outside the vocabulary."""

    def known(record: Record) -> Record:
        names = tuple(dict.fromkeys(name if name in vocabulary else UNKNOWN for name in record.labels))
        return record if names == record.labels else record.model_copy(update={"labels": names})

    return [known(record) for record in records]


def choose_task(task: str, rows: Sequence[Row], options: IngestOptions) -> Task:
    """Return the task asked for; by itself `multi` where any row holds a list of labels, else `single`."""
    if task in ("single", "multi"):
        return "multi" if task == "multi" else "single"
    for row in rows:
        try:
            record = record_from(row, options.fields(), separator=options.separator)
        except RowError:
            continue
        name = options.fields().get("labels") or next(
            (key for key in ("label", "labels", "tags") if key in row.fields), ""
        )
        if len(record.labels) > 1 or isinstance(row.fields.get(name), list):
            return "multi"
    return "single"


def one_label_each(candidates: list[Candidate], task: Task, rejects: Rejects) -> list[Candidate]:
    """Return the candidates that fit the task: for `single`, those with exactly one label."""
    if task == "multi":
        return candidates
    kept = []
    for item in candidates:
        if len(item.record.labels) == 1:
            kept.append(item)
        else:
            message = f"{len(item.record.labels)} labels where the task is single; --task multi takes several"
            rejects.add_row(item.row, item.record.id, "label-count", message)
    return kept


def given_splits(candidates: Sequence[Candidate], options: IngestOptions) -> list[Split] | None:
    """Return the splits that the rows bring with them, None where they are to be drawn.

    Raises BadInputError where some rows have one and others have none.
    """
    given = [item.record.split for item in candidates]
    if options.split != "keep" and not (options.split == "auto" and any(given)):
        return None
    missing = [item for item, split in zip(candidates, given, strict=True) if split is None]
    if missing:
        where = f"{missing[0].row.source}:{missing[0].row.line}"
        raise BadInputError(f"{where}: {len(missing)} rows have no split; give all rows one, or --split 0.7,0.15,0.15")
    return [split for split in given if split is not None]


def without_leaks(candidates: list[Candidate], options: IngestOptions, rejects: Rejects) -> list[Candidate]:
    """Return the candidates without train rows that share a picture, text or group with a row that is held out."""
    splits = given_splits(candidates, options)
    if splits is None:
        return candidates
    shared = leaking([leak_keys(item) for item in candidates], splits)
    for number, other in shared.items():
        item, theirs = candidates[number], candidates[other].record
        message = f"shares a picture, text or group with {theirs.id} of {theirs.split}"
        rejects.add_row(item.row, item.record.id, "leak", message)
    return [item for number, item in enumerate(candidates) if number not in shared]


def assign_splits(
    candidates: Sequence[Candidate], keys: Sequence[list[Key]], options: IngestOptions, seed: int
) -> tuple[list[Record], str]:
    """Return the records with split and group set, and how the splits came about."""
    splits = given_splits(candidates, options)
    if splits is not None:
        # Given splits cannot be mended: groups only tell which rows an interval must draw together. Short texts ("What?")
        # would join most dialogues of a set into one, so a row that has a group of its own is not joined by its text.
        groups = group_rows([own_group(row) for row in keys])
        how = "kept as given"
    else:
        groups = group_rows(keys)
        fractions = parse_fractions("0.7,0.15,0.15" if options.split == "auto" else options.split)
        splits = split_groups(groups, [item.record.labels for item in candidates], fractions, seed)
        how = f"drawn: {', '.join(f'{name} {share:g}' for name, share in zip(SPLITS, fractions, strict=True))}"
    names = [candidates[group].record.id for group in groups]
    records = [
        item.record.model_copy(update={"split": split, "group": name, "meta": jsonable(meta_of(item))})
        for item, split, name in zip(candidates, splits, names, strict=True)
    ]
    return records, how


def leak_keys(item: Candidate) -> list[Key]:
    """Return what must not lie in two splits: the picture's bytes and look, the text, the group.

    Texts are compared without case, spaces and punctuation; emoji and the vowel signs of Indic scripts count.
    """
    given = (item.record.text or "").casefold()
    text = "".join(character for character in given if category(character)[0] in "LMNS") or given
    found = [("bytes", item.sha256), ("look", item.look), ("text", text), ("group", item.record.group)]
    return [(kind, value) for kind, value in found if value]


def own_group(keys: list[Key]) -> list[Key]:
    """Return the keys without the text's where there is a group."""
    grouped = any(kind == "group" for kind, _ in keys)
    return [(kind, value) for kind, value in keys if not (grouped and kind == "text")]


def meta_of(item: Candidate) -> dict[str, Any]:
    """Return the record's own meta, with the picture's sha256 and the user's group added."""
    own = item.record.meta | ({"group": item.record.group} if item.record.group else {})
    return own | ({"image_sha256": item.sha256} if item.sha256 else {})


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return train, validation and test shares; raises UsageError unless they are three and add up to one."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise UsageError(f"--split {text}: expected `keep` or three shares that add up to 1, such as 0.7,0.15,0.15")
    return shares
