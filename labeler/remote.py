"""Files on S3, or on what speaks like it, through Arrow: looked at, read, copied here and written.

A place there is a string, s3://BUCKET/KEY, whose key is taken as it stands; a place of this machine is a Path. Credentials come
from the environment or a profile, as with Amazon's own tools; AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names another server.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from labeler.artifacts import appearing
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.pictures.images import FRAME, MAX_FILE_BYTES, ImageError, check_size
from labeler.records import Remote

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

THREADS = 16  # requests at a time: each waits for the network most of its time
AHEAD = 64  # answers that wait for their turn
PREFIX = "s3://"
LOST = "NETWORK_CONNECTION"
DENIED = re.compile("ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT|SIGNATURE|TOKEN|HTTP status 40[013]")
# what Arrow's errors say beside the reason
AROUND = re.compile(r"^When .*?: (?=AWS Error)| ?\(Request ID: \w*\)|Unable to parse ExceptionName: ")

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=16)
def connected(bucket: str, endpoint: str | None) -> S3FileSystem:
    """Return what reads and writes a bucket, at an endpoint or where Amazon keeps it."""
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    if endpoint:
        return S3FileSystem(endpoint_override=endpoint, connect_timeout=10)
    region = None
    with suppress(OSError, ValueError):  # the environment's, where nobody answers
        region = resolve_s3_region(bucket)
    return S3FileSystem(region=region, connect_timeout=10)


def endpoint() -> str | None:
    """Return the address that is asked in place of Amazon's; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def opened(url: str) -> tuple[S3FileSystem, str]:
    """Return the file system of a place, and its path there; raises UsageError where it is no place on S3."""
    scheme, _, path = url.partition("://")
    bucket = path.partition("/")[0]
    if scheme != "s3" or not bucket:
        raise UsageError(f"{url}: expected a path of this machine, or s3://BUCKET/KEY")
    return connected(bucket, endpoint()), path.rstrip("/")


def reason(error: Exception) -> str:
    """Return why Arrow could not read or write, as one line."""
    return AROUND.sub("", str(error).splitlines()[0])[:200].strip()


@contextmanager
def as_our_errors(url: str) -> Iterator[None]:
    """Raise what Arrow raises as errors of ours: LabelerError where the connection is lost, else BadInputError."""
    try:
        yield
    except FileNotFoundError:
        raise BadInputError(f"{url}: no such object or folder") from None
    except (OSError, ValueError, NotImplementedError) as error:
        if LOST in str(error):
            raise lost(url, error) from None
        advice = "; are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, right for it?"
        raise BadInputError(f"{url}: {reason(error)}{advice if DENIED.search(str(error)) else ''}") from None


def lost(url: str, error: Exception) -> LabelerError:
    """Return the error that ends a run when the connection does, so that not every item is one."""
    kept = "what has been labelled is kept, and the same command goes on from there"
    return LabelerError(f"{url}: no connection ({reason(error)}); {kept}")


def status(url: str) -> FileInfo:
    """Return what is known of a place; raises BadInputError where its bucket is missing, and as `as_our_errors` does."""
    from pyarrow.fs import FileType

    with as_our_errors(url):
        filesystem, path = opened(url)
        found = filesystem.get_file_info(path)
        bucket = path.partition("/")[0]
        if found.type is FileType.NotFound and filesystem.get_file_info(bucket).type is FileType.NotFound:
            raise BadInputError(f"{url}: there is no bucket {bucket!r}")
        return found


def version(url: str) -> str | None:
    """Return what changes when an object is written: its size, time and ETag; None where there is none.

    Raises as `status` does.
    """
    found = status(url)
    if not found.is_file:
        return None
    with as_our_errors(url):
        filesystem, path = opened(url)
        with filesystem.open_input_stream(path) as file:
            etag = file.metadata().get("ETag", b"")
    return f"{found.size} {found.mtime_ns} {etag.decode()}"


def read_bytes(url: str, most: int) -> bytes:
    """Return an object's bytes, `most` + 1 of them where there are more, by which the caller sees that.

    Raises OSError, and LabelerError where the connection is lost.
    """
    try:
        filesystem, path = opened(url)
        with filesystem.open_input_file(path) as file:
            return file.read(min(file.size(), most + 1))
    except FileNotFoundError:
        raise FileNotFoundError("no such file") from None
    except (OSError, ValueError, NotImplementedError) as error:
        raise (lost(url, error) if LOST in str(error) else OSError(reason(error))) from None


def in_threads(
    function: Callable[[T], R], items: Iterable[T], wanted: Callable[[T], bool] | None = None
) -> Generator[R, None, None]:
    """Yield `function(item)` for each of `items`, in order, worked out in threads up to AHEAD items early.

    One that is not `wanted` comes as it is.
    """
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if wanted is None or wanted(item):
                waiting.append(pool.submit(function, item))
            else:
                waiting.append(Future())
                waiting[-1].set_result(item)  # type: ignore[arg-type]
            while waiting and (waiting[0].done() or len(waiting) > AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def file_of(url: str) -> str:
    """Return the file of a picture's URL, which may name one of its frames."""
    match = FRAME.fullmatch(url)
    return match[1] if match else url


def fetch(picture: Remote) -> bytes:
    """Return a picture's bytes; raises ImageError, and LabelerError where the connection is lost."""
    try:
        if picture.size is not None:
            check_size(picture.size, f"{picture.url}: ")
        data = read_bytes(file_of(picture.url), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise ImageError("image-missing", f"{picture.url}: no such file") from None
    except OSError as error:
        raise ImageError("image-unreadable", f"{picture.url}: {error}") from None
    check_size(len(data), f"{picture.url}: ")
    return data


@contextmanager
def copied(url: str) -> Iterator[Path]:
    """Yield a copy of an object on this machine, of the same name, as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="labeler-") as folder:
        copy = Path(folder) / posixpath.basename(url)
        download(url, copy)
        yield copy


def download(url: str, path: Path) -> None:
    """Write an object to a file, which appears whole or not at all."""
    from pyarrow.fs import LocalFileSystem, copy_files

    # a copy of gigabytes that a kill left is not to lie there beside the next one's
    with appearing(path, alone=True) as partial, as_our_errors(url):
        filesystem, place = opened(url)
        copy_files(place, str(partial), source_filesystem=filesystem, destination_filesystem=LocalFileSystem())


def upload(path: Path, url: str) -> None:
    """Write an object, which appears whole or not at all; raises LabelerError where that fails."""
    from pyarrow.fs import LocalFileSystem, copy_files

    try:
        filesystem, place = opened(url)
        # one call, which no signal ends half-way: to close a stream after an error would publish what it holds
        copy_files(str(path), place, source_filesystem=LocalFileSystem(), destination_filesystem=filesystem)
    except (OSError, ValueError, NotImplementedError) as error:
        raise LabelerError(f"{url}: cannot be written ({reason(error)}); {path} is the whole output, and the same command "
                           "uploads it") from None  # fmt: skip
