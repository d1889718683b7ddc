"""Processes: a piece of work that crashes, fills or hangs its process costs itself alone, and nothing outlives its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from crashing import ENDS, arrays, decode

from labeler import processes
from labeler.errors import LabelerError
from labeler.pictures.images import ImageError
from labeler.processes import AHEAD, WorkError, cores, python_command

ROOT = Path(__file__).parent.parent

in_workers = partial(processes.in_workers, yielded=(ImageError, WorkError))


def results(names: list[str | None], seconds: float = 60) -> list:
    """Return what comes out for items of these names; errors as their codes."""
    found = list(in_workers(decode, (name and (Path(name),) for name in names), seconds))
    return [item.code if isinstance(item, (ImageError, WorkError)) else item for item in found]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "labeler.processes" in str(child.cmdline())]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Assert that no worker outlives the iterator that started it, and no file stays open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert children() == []
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_results_come_in_the_order_of_the_input():
    names = [f"{number}-slow" if number in (0, 7, 8) else str(number) for number in range(40)]
    names.insert(5, None)
    assert results(names) == names
    assert results([]) == []


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("bad", [[0], [2], [5], [1, 2, 4], [0, 1, 2, 3, 4, 5]], ids=str)
def test_files_that_end_their_process_cost_themselves_alone(end, bad):
    names = [f"{number}-{end}" if number in bad else str(number) for number in range(6)]
    assert results(names) == ["crashed" if number in bad else str(number) for number in range(6)]


def test_what_ended_a_process_is_said():
    found = [str(item) for item in in_workers(decode, [(Path("a-abort.png"),), (Path("b-exit.png"),)])]
    assert found == [
        f"a-abort.png: the process that read it died (signal {int(signal.SIGABRT)})",
        "b-exit.png: the process that read it died (exit code 0)",
    ]


def test_a_file_that_hangs_is_given_up_after_the_limit():
    start = time.monotonic()
    (error,) = in_workers(decode, [(Path("hang.png"),)], 0.5)
    assert error.code == "timeout"
    assert str(error) == "hang.png: not read within the limit (0.5 s of CPU time, 2.5 s by the clock)"
    assert time.monotonic() - start < 60
    assert results(["a", "hang", "b", "stuck"], 0.5) == ["a", "timeout", "b", "timeout"]


def test_the_limit_is_for_one_item_and_not_for_a_process():
    assert results(["slow"] * 10 * cores(), 0.5) == ["slow"] * 10 * cores(), "each slept three seconds in all"


def test_a_file_that_takes_memory_is_refused():
    (error,) = in_workers(decode, [(Path("memory.png"),)])
    assert (error.code, str(error)) == ("too-large", "memory.png: over 4 GiB of memory are needed")
    assert results(["a", "memory", "b"]) == ["a", "too-large", "b"]


def test_errors_keep_their_code_and_bugs_are_raised():
    (error,) = in_workers(decode, [(Path("refused.png"),)])
    assert (error.code, str(error)) == ("image-unreadable", "refused.png: refused")
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        results(["a", "bug", "b"])


@pytest.mark.parametrize("name", ["b-abort", "b-memory"])
def test_an_item_that_ends_its_process_is_an_error_where_none_is_awaited(name):
    found = processes.in_workers(decode, [(Path("a"),), (Path(name),)])
    assert next(found) == "a"
    with pytest.raises(LabelerError, match=f"^{name}: "):
        next(found)


def test_a_process_killed_once_costs_nothing():
    found = in_workers(decode, ((Path(f"{number}-slow"),) for number in range(12)))
    first = next(found)
    for child in children():
        child.kill()
    assert [first, *found] == [f"{number}-slow" for number in range(12)]


def test_processes_that_cannot_start_are_an_error_and_not_an_items(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(LabelerError, match=r"ended at its start \(exit code 1\)"):
        list(in_workers(decode, [(Path("a.png"),)]))


def test_items_are_drawn_only_as_far_ahead_as_said():
    drawn = []
    paths = (drawn.append(number) or (Path(str(number)),) for number in count())
    found = in_workers(decode, paths)
    assert list(islice(found, 300)) == [str(number) for number in range(300)]
    found.close()
    assert 300 <= len(drawn) <= 300 + AHEAD + 1


def test_there_are_as_many_processes_as_cores_and_no_more_than_needed():
    for wanted, pictures in ((1, 1), (cores(), 50)):
        found = in_workers(decode, [(Path("slow"),)] * pictures)
        next(found)
        assert len(children()) == wanted
        found.close()


def test_a_process_loads_only_what_its_work_needs_and_shows_nothing(capfd):
    found = in_workers(decode, [(Path("stderr slow"),)] * 2)
    next(found)
    libraries = {Path(place.path).name for child in children() for place in child.memory_maps()}
    found.close()
    assert any("numpy" in place.path for place in psutil.Process().memory_maps())
    assert not any(name.startswith(("libtorch", "lance", "libarrow", "cv2")) for name in libraries)
    assert capfd.readouterr() == ("", "")


def test_what_an_iterator_closed_early_leaves_running_is_ended_at_once():
    found = in_workers(decode, [(Path("a"),), *[(Path("hang"),)] * 9])
    next(found)
    start = time.monotonic()
    found.close()
    assert time.monotonic() - start < 5


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from crashing import decode
from labeler.processes import in_workers
for name in in_workers(decode, [(Path(name),) for name in ["a", "b"] + ["{word}"] * 99]):
    print(name, flush=True)
"""


@pytest.fixture(params=["hang", "slow"])
def caller(request):
    """Return a running process with workers of its own that are in the midst of decoding; no main guard is needed."""
    script = SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")], word=request.param)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"a\n"
    yield process
    process.kill()
    process.communicate()


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def test_a_caller_that_is_killed_leaves_no_process(caller):
    workers = workers_of(caller)
    assert workers
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_ctrl_c_ends_all_and_only_the_caller_speaks(caller):
    workers = workers_of(caller)
    os.killpg(caller.pid, signal.SIGINT)
    _, err = caller.communicate(timeout=20)
    assert err.decode().count("Traceback") == 1
    assert err.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_arrays_come_back_as_they_were():
    sent = [np.random.default_rng(n).integers(0, 256, (n, 600, 3), dtype=np.uint8) for n in (0, 1, 700)]
    for pixels, found in zip(sent, in_workers(arrays, [(Path("a"), pixels) for pixels in sent]), strict=True):
        for one, other in zip(found, arrays(Path("a"), pixels), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert found[0].flags.writeable


def test_a_new_process_imports_nothing_from_the_working_folder_but_the_package_itself(tmp_path, monkeypatch):
    def imported(name: str) -> Path:
        command = python_command(f"import {name}; print({name}.__file__)")
        return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())

    (tmp_path / "random.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for place in ("", str(tmp_path)):
        monkeypatch.syspath_prepend(place)
        assert imported("random").parent != tmp_path
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", *(place for place in sys.path if place != str(ROOT))])
    assert imported("labeler").resolve() == ROOT / "labeler" / "__init__.py"
