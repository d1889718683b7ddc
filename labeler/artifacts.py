"""Artifacts: folders that appear whole or not at all, and say how they were made.

Every stage writes one folder. The folder is built beside its final name, `manifest.json` is written
last (stage, inputs with their sha256, arguments, seed, versions, a sha256 for every file), and then
the folder is renamed to its final name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from labeler.errors import BadInputError, LockedError
from labeler.paths import place_of, refuse_bytes
from labeler.versions import versions

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"  # a run's: told anew when the run is evaluated, so that no manifest holds it

log = logging.getLogger("labeler")


class Input(NamedTuple):
    """One input of a stage: where it was, and the sha256 of what it held."""

    path: str
    sha256: str


class Recipe(NamedTuple):
    """What decides an artifact's content: two equal recipes make the same artifact."""

    stage: str
    inputs: tuple[Input, ...]
    arguments: dict[str, Any]
    seed: int = 0
    defaults: Mapping[str, Any] = MappingProxyType({})  # of arguments that an earlier version did not record

    def recorded(self) -> dict[str, Any]:
        """Return what is written of it."""
        inputs = [item._asdict() for item in self.inputs]
        return {"stage": self.stage, "inputs": inputs, "arguments": self.arguments, "seed": self.seed}


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex sha256 of `value` as canonical JSON."""
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def file_hashes(folder: Path) -> dict[str, str]:
    """Return {relative path: sha256} of every file below `folder` but its manifest and its CARD, sorted."""
    apart = (folder / MANIFEST, folder / CARD)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def read_json(path: Path) -> Any:
    """Return what the JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that appears whole or not at all."""
    write_parts(path, (text,))


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Write a UTF-8 file of `parts`, one after another, that appears whole or not at all."""
    with appearing(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def appearing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield a partial file beside `path`, which takes its place when the block ends and is removed when it raises.

    alone: no other process writes `path` meanwhile; what a kill leaves of it is then overwritten by the next try.
    """
    partial = path.with_name(f".{path.name}.partial" if alone else f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(folder: Path, made_by: str | None = None, name: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest of the artifact `folder`; `name` is another than MANIFEST for files added to a folder.

    Raises BadInputError when the folder is missing or holds no manifest (an artifact cut off, or not
    ours), when another schema version wrote it, or when `made_by` names another stage; it names what in the folder would do.
    """
    step = f"run `labeler {made_by}` first" if made_by else "give a folder that a labeler stage wrote"
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such artifact folder; {step}")
    try:
        manifest = read_json(folder / name)
        stage, schema_version = manifest["stage"], 0 + manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        step = inside(folder, made_by) or step
        raise BadInputError(f"{folder}: no readable {name} in it, so it is not a finished artifact; {step}") from error
    if schema_version != SCHEMA_VERSION:
        age = "newer" if schema_version > SCHEMA_VERSION else "older"
        raise BadInputError(
            f"{folder}: written by a{'n' if age == 'older' else ''} {age} labeler (schema {schema_version}, this one "
            f"reads {SCHEMA_VERSION}); make it again with `labeler {stage}`, or use the labeler that wrote it"
        )
    if made_by and stage != made_by:
        message = f"{folder}: made by `labeler {stage}`, expected the output of `labeler {made_by}`"
        raise BadInputError("; ".join(filter(None, (message, inside(folder, made_by)))))
    return manifest


def inside(folder: Path, made_by: str | None) -> str:
    """Return in words which artifacts of the stage `made_by`, by default which runs, lie in `folder`; "" where none do."""
    stages, found = (made_by,) if made_by else ("train", "pretrain"), []
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if read_json(path)["stage"] in stages:
                found.append(str(path.parent))
    return f"give what lies in it: {', '.join(found)}" if found else ""


def verify(folder: Path, made_by: str | None = None, name: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest after comparing every file with its recorded sha256.

    Raises BadInputError naming the first file that is missing or differs.
    """
    manifest = read_manifest(folder, made_by, name)
    if problem := damage(folder, manifest, name):
        raise BadInputError(f"{problem}; make it again with `labeler {manifest['stage']} --force`")
    return manifest


def damage(folder: Path, manifest: dict[str, Any], name: str = MANIFEST) -> str | None:
    """Return what is wrong with the first file that is missing or differs from its sha256 in `manifest`, None if none is."""
    for file, expected in manifest["files"].items():
        path = folder / file
        if not path.is_file():
            return f"{path}: missing"
        if sha256_file(path) != expected:
            return f"{path}: damaged (its sha256 is not the one in {name})"
    return None


def input_of(folder: Path, manifest: dict[str, Any]) -> Input:
    """Return the artifact `folder` as an input for the next stage's recipe; raises BadInputError as `refuse_bytes` does."""
    refuse_bytes(folder)
    return Input(str(folder), manifest["content_sha256"])


def already_made(folder: Path, recipe: Recipe, name: str = MANIFEST) -> bool:
    """Return whether `folder` holds a whole, undamaged artifact of this very recipe; log why not."""
    if not (folder / name).is_file():
        return False
    try:
        manifest = read_manifest(folder, recipe.stage, name)
    except BadInputError as error:
        log.warning("%s", error)
        return False
    if problem := damage(folder, manifest, name):
        log.warning("%s; making it again", problem)
        return False
    changed = differences(manifest, recipe)
    for line in changed:
        log.info("%s: %s; making it again", folder, line)
    return not changed


def differences(manifest: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return one sentence for each way in which `recipe` differs from the recipe in `manifest`."""
    then, now = [item["sha256"] for item in manifest["inputs"]], [item.sha256 for item in recipe.inputs]
    lines = ["an input has changed"] if then != now else []
    if manifest["seed"] != recipe.seed:
        lines.append(f"seed was {manifest['seed']}, is {recipe.seed}")
    defaults, asked = json.loads(json.dumps([dict(recipe.defaults), recipe.arguments]))  # tuples as lists
    before = defaults | manifest["arguments"]
    return lines + [f"{key} was {before.get(key)!r}, is {asked.get(key)!r}"
                    for key in sorted(before.keys() | asked.keys()) if before.get(key) != asked.get(key)]  # fmt: skip


def work_folder(folder: Path) -> Path:
    """Return the folder beside `folder` in which it is being made."""
    return beside(folder, "making")


def beside(folder: Path, what: str) -> Path:
    """Return the hidden path beside `folder` for `what`; raises BadInputError for the root, which nothing lies beside."""
    place = place_of(folder)
    if not place.name:
        raise BadInputError(f"{folder}: cannot be made, nothing lies beside it; choose another --out")
    return place.with_name(f".{place.name}.{what}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on making `folder`; the kernel frees a dead process's lock by itself.

    Raises LockedError when another process holds it, BadInputError where nothing can be written.
    """
    path = beside(folder, "lock")
    try:
        lock = open(path, "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise BadInputError(f"{folder}: cannot be made there ({error.strerror}); choose another --out") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock.
            held = path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except BlockingIOError:
            held = False
        if not held:
            raise LockedError(f"{folder}: another labeler process is making it; wait for it or choose another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def making(
    folder: Path,
    recipe: Recipe | Callable[[], Recipe],
    *,
    resume: bool = False,
    keep: bool = False,
    content: str | Callable[[dict[str, str]], str] | None = None,
    stage: str | None = None,
) -> Iterator[Path]:
    """Yield a work folder; when the block ends without an error, publish it as `folder`.

    Args:
        folder: the artifact's final place, or a link to it, which stays. An older one there is replaced only at the very end.
        recipe: recorded in the manifest; a function is called when the folder is complete.
        resume: begin with what an interrupted making left in the work folder.
        keep: leave the work folder there on errors, so that a later making can resume.
        content: sha256 that stands for the content where the files' bytes are not reproducible (a Lance dataset names its files
            at random), or a function that makes it of the files' hashes; by default made of all of them.
        stage: the recipe's, where that is a function.

    Raises LockedError (see `locked`), and BadInputError when `folder` exists and is no artifact of this stage.
    """
    refuse_foreign(folder, recipe.stage if isinstance(recipe, Recipe) else stage)
    make_parent(folder)
    work = work_folder(folder)
    started = datetime.now(timezone.utc)
    with locked(folder):
        if not folder.exists() and (old := beside(folder, "old")).is_dir():
            old.replace(place_of(folder))  # a kill came between the renames of `replace_folder`
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        try:
            yield work
            if callable(recipe):
                recipe = recipe()
            write_manifest(work, recipe, started, content)
            replace_folder(work, folder)
        except BaseException:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
            raise


def check_free(folder: Path, stage: str) -> None:
    """Raise what `making` would raise, before any work: see `refuse_foreign`, `make_parent` and `locked`."""
    refuse_foreign(folder, stage)
    make_parent(folder)
    with locked(folder):
        pass


def refuse_foreign(folder: Path, stage: str | None) -> None:
    """Raise BadInputError when `folder` exists and is neither empty nor an artifact of `stage`, be it damaged; for `.`, and for
    a name that is not UTF-8 (see `refuse_bytes`).
    """
    refuse_bytes(folder)
    if folder.name in ("", ".."):  # what is replaced is renamed, and whoever is in it is in a folder that is gone
        raise BadInputError(f"{folder}: cannot be replaced, you may be in it; give --out a folder's name")
    if not folder.exists() and (not folder.is_symlink() or beside(folder, "old").is_dir()):
        return
    made_by = None
    if folder.is_dir() and (folder / MANIFEST).is_file():
        try:
            found = read_json(folder / MANIFEST)
        except (OSError, ValueError):  # damaged
            return
        made_by = found.get("stage") if isinstance(found, dict) and "content_sha256" in found else None
        if made_by and made_by != stage:
            raise BadInputError(
                f"{folder}: made by `labeler {made_by}`, and `labeler {stage}` would replace it; choose another --out"
            )
    if not made_by and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder}: exists and was not made by labeler, so it is left alone; choose another --out")


@contextmanager
def adding(folder: Path, recipe: Recipe, name: str = MANIFEST) -> Iterator[Path]:
    """Yield a work folder; when the block ends without an error, move its files into `folder`, the manifest `name` last.

    For a folder that holds other things too: files of other names stay as they are and are no part of the
    manifest. After a crash between two moves the manifest's hashes do not fit, so the stage is run again.

    Raises LockedError (see `locked`), and BadInputError when `folder` cannot be made.
    """
    work = beside(folder, "adding")
    started = datetime.now(timezone.utc)
    make_parent(folder)
    with locked(folder):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
            write_manifest(work, recipe, started, name=name)
            folder.mkdir(exist_ok=True)
            for path in sorted(work.iterdir(), key=lambda path: path.name == name):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def make_parent(folder: Path) -> None:
    """Make the folder that `folder` will lie in; raises BadInputError when that cannot be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder.parent}: cannot be made a folder ({error.strerror}); choose another --out"
        raise BadInputError(message) from error


def write_manifest(
    work: Path,
    recipe: Recipe,
    started: datetime,
    content: str | Callable[[dict[str, str]], str] | None = None,
    name: str = MANIFEST,
) -> None:
    """Write the manifest into `work`; nothing may be written there afterwards."""
    files = file_hashes(work)
    if callable(content):
        content = content(files)
    write_json(work / name, {
        **recipe.recorded(),
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "created": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(timezone.utc) - started).total_seconds(), 3),
        "content_sha256": content or sha256_json(files),
        "files": files,
    })  # fmt: skip


def replace_folder(work: Path, folder: Path) -> None:
    """Rename `work` to `folder`, moving what stood there out of the way first and deleting it last."""
    old, place = beside(folder, "old"), place_of(folder)
    remove(old)
    if place.exists():
        place.replace(old)
    work.replace(place)
    remove(old)


def remove(path: Path) -> None:
    """Delete a folder with all that is in it; of a link only the link."""
    if path.is_symlink():
        return path.unlink()
    return shutil.rmtree(path, ignore_errors=True)
