"""Work in processes of its own, one a core: what crashes, fills or hangs its process costs itself alone.

Pictures are decoded so, and the lines of large files read. A process is a fresh interpreter that imports only what its work
needs: forking is not safe beside Lance and torch, and multiprocessing's spawn would run the caller's main module again.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from labeler.errors import CodedError, LabelerError

TIME_LIMIT = 60.0  # seconds of CPU time for one item
WAITING = 5  # times as long by the clock, since other work on the machine may leave a process little of it
MEMORY_LIMIT = 4 << 30  # bytes of address space a process; the largest picture allowed takes a quarter
AHEAD = 128  # items in flight or waiting for their turn: pictures of 224 pixels take 20 MB
# One thread, since there is a process a core. glibc is to keep what a picture frees for the next one: getting its pages
# anew from the system takes a third of the time.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
TRIES = 2  # what ended a process may have been another's fault: no memory left, or stopped for longer than the limit


class WorkError(LabelerError, CodedError):
    """A piece of work that its process has not survived; `code` says of what: `crashed`, `timeout` or `too-large`."""


def in_workers(
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...] | None],
    seconds: float = TIME_LIMIT,
    ahead: int = AHEAD,
    then: Callable[[Any], Any] | None = None,
    yielded: tuple[type[Exception], ...] = (),
) -> Generator[Any, None, None]:
    """Yield `function(*item)` for each of `items`, in their order; None for None.

    Where `then` is given, a thread of this process does that with each result, beside the next item's work. Errors of the
    classes `yielded` are yielded in a result's place, all others raised.

    Lazy: at most `ahead` items are drawn beyond the one whose result is yielded. A process a core does the work, each
    started when it is first needed and after it has died; closing the iterator ends them. `function` is found by its
    module and name there; the first value of an item is the path, or what else names it.

    Raises LabelerError when processes cannot be started; WorkError for an item during which its process dies twice, or takes
    over `seconds` of CPU time, and for one for which memory does not suffice; and any error of `function`.
    """
    workers = Workers(seconds, then, yielded)
    # only the main thread, and no worker, is to hear Ctrl-C: a process inherits its mask from the thread that starts it
    quiet = (signal.SIG_BLOCK, {signal.SIGINT})
    # twice as many threads as processes, so that none waits for what a thread does between two items
    pool = ThreadPoolExecutor(2 * cores(), initializer=signal.pthread_sigmask, initargs=quiet)
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(workers.call, function, item))
            while waiting and (waiting[0].done() or len(waiting) > ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        workers.kill()  # so that no thread waits for one any more
        pool.shutdown(cancel_futures=True)
        workers.close()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_command(code: str) -> list[str]:
    """Return the command that runs `code` in a new process, which imports from where this one does, but nothing from the working
    folder: a file there may be called as a module is. Where the package itself lies there, that is meant.
    """
    package, places = Path(__file__).parents[1], [place or "." for place in sys.path]
    here = [place for place in places if os.path.exists(place) and os.path.samefile(place, ".")]
    path = [place for place in places if place not in here or os.path.samefile(place, package)]
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {path!r}; {code}"]


class Workers:
    """Processes, at most one a core, for any number of threads that call."""

    def __init__(
        self,
        seconds: float,
        then: Callable[[Any], Any] | None = None,
        yielded: tuple[type[Exception], ...] = (),
    ):
        self.seconds = seconds
        self.then = then
        self.yielded = yielded
        self.free = threading.Semaphore(cores())
        self.idle: list[Worker] = []
        self.started: set[Worker] = set()
        self.lock = threading.Lock()
        self.closed = False

    def call(self, function: Callable[..., Any], item: tuple[Any, ...] | None) -> Any:
        """Return `function(*item)` from a process, or the error that it ended in, if that is one of `yielded`."""
        if item is None:
            return None
        for _ in range(TRIES):
            with self.free:
                worker = self.worker()
                try:
                    answer = worker.call(function, item)
                except (EOFError, OSError):
                    code = self.stop(worker)
                    continue
                self.idle.append(worker)
            break
        else:
            answer = death(item[0], code, self.seconds)
        if isinstance(answer, self.yielded):
            return answer
        if isinstance(answer, Exception):
            raise answer
        return self.then(answer) if self.then else answer

    def worker(self) -> Worker:
        """Return an idle process or a new one; raises LabelerError when it cannot be started."""
        with self.lock:
            if self.idle:
                return self.idle.pop()
            if self.closed:
                raise LabelerError("closed")
            worker = Worker(self.seconds)
            self.started.add(worker)
        try:
            receive(worker.channel)  # it is ready
        except (EOFError, OSError):
            code = self.stop(worker)
            raise LabelerError(f"a worker process ended at its start (exit code {code}); is there memory?") from None
        return worker

    def stop(self, worker: Worker) -> int:
        """Leave nothing of a process that has died; return its exit code."""
        with self.lock:
            self.started.discard(worker)
        return worker.close()

    def kill(self) -> None:
        """End all processes and start none any more."""
        with self.lock:
            self.closed = True
            for worker in self.started:
                worker.process.kill()

    def close(self) -> None:
        """Leave nothing of the processes, after `kill`."""
        for worker in self.started:
            worker.close()


class Worker:
    """A process that does one piece of work at a time, and ends when its caller does."""

    def __init__(self, seconds: float):
        self.channel, theirs = socket.socketpair()
        with theirs:
            code = f"from labeler.processes import serve; serve({theirs.fileno()}, {seconds})"
            # What libraries write about broken files is not shown.
            self.process = subprocess.Popen(
                python_command(code), pass_fds=[theirs.fileno()], env=os.environ | ENVIRONMENT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def call(self, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
        """Return `function(*item)`, or the exception it ended with; raises EOFError or OSError when the process dies."""
        send(self.channel, (function, item))
        return receive(self.channel)

    def close(self) -> int:
        """Close this end of the channel, which ends the process; return its exit code."""
        self.channel.close()
        return self.process.wait()


def send(channel: socket.socket, value: Any) -> None:
    """Send a value; the memory of its arrays goes as it is, since to pickle it too takes many times as long."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(head), *(array.raw() for array in arrays)]
    channel.sendall(struct.pack(f"=Q{len(parts)}Q", len(parts), *map(len, parts)))
    for part in parts:
        channel.sendall(part)


def receive(channel: socket.socket) -> Any:
    """Return what was sent; raises EOFError when the other end is closed before."""
    (count,) = struct.unpack("=Q", received(channel, 8))
    sizes = struct.unpack(f"={count}Q", received(channel, 8 * count))
    head, *arrays = [received(channel, size) for size in sizes]
    return pickle.loads(head, buffers=arrays)


def received(channel: socket.socket, size: int) -> bytearray:
    """Return the next `size` bytes; raises EOFError where there are fewer."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = channel.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def death(name: Any, code: int, seconds: float) -> WorkError:
    """Return the error of the item `name` whose process ended with the exit code `code`."""
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        limits = f"{seconds:g} s of CPU time, {WAITING * seconds:g} s by the clock"
        return WorkError("timeout", f"{name}: not read within the limit ({limits})")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return WorkError("crashed", f"{name}: the process that read it died ({how})")


def serve(descriptor: int, seconds: float) -> None:
    """Work as a worker: answer calls that come over the socket `descriptor` until its other end is closed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not every system has it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    gc.set_threshold(100_000)  # thousands of rows at a time are no reason to look for cycles
    threading.Thread(target=end_with_caller, args=(descriptor,), daemon=True).start()
    channel = socket.socket(fileno=descriptor)
    send(channel, None)  # ready
    while True:
        try:
            function, item = receive(channel)
            set_limits(seconds)
            answer = function(*item)
        except MemoryError:
            answer = WorkError("too-large", f"{item[0]}: over {MEMORY_LIMIT >> 30} GiB of memory are needed")
        except EOFError:
            return
        except Exception as error:
            answer = error
        set_limits(0)
        send(channel, answer)


def set_limits(seconds: float) -> None:
    """Have the kernel end this process, whatever it is doing, after `seconds` of CPU time or WAITING times as long; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)


def end_with_caller(descriptor: int) -> None:
    """Wait until the other end of the socket is closed, by intention or because its process was killed; end this one."""
    closed = select.poll()
    closed.register(descriptor, 0)  # only hang-ups, which are always reported
    closed.poll()
    os._exit(1)
