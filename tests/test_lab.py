"""The lab's loop: awaited in a cell, asked for its result in a script, broken off at once."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from kode_lab.lab import start


def test_the_result_comes_to_a_script_that_asks():
    async def work():
        return "done"

    assert start(work).result() == "done"


def test_the_result_comes_to_a_cell_that_awaits():
    async def work():
        return "done"

    async def cell():
        return await start(work)

    assert asyncio.run(cell()) == "done"


def test_a_run_has_a_loop_and_a_thread_of_its_own():
    async def work():
        return asyncio.get_running_loop(), threading.current_thread()

    async def cell():
        loop, thread = await start(work)
        assert loop is not asyncio.get_running_loop()
        assert thread is not threading.current_thread()
        assert thread.daemon

    asyncio.run(cell())


def test_the_callers_loop_goes_on_while_it_waits():
    go = threading.Event()

    async def work():
        return await asyncio.to_thread(go.wait, 30)

    async def cell():
        handle = start(work)
        # Set from the waiting loop: were it blocked, the run would never end.
        asyncio.get_running_loop().call_soon(go.set)
        return await handle

    assert asyncio.run(cell()) is True


def test_what_the_run_raises_is_raised_where_somebody_waits():
    async def work():
        raise LookupError("no such thing")

    async def cell():
        await start(work)

    with pytest.raises(LookupError, match="no such thing"):
        start(work).result()
    with pytest.raises(LookupError, match="no such thing"):
        asyncio.run(cell())


def test_the_tick_and_the_end_are_called_in_the_thread_that_waits():
    threads, ticked = [], threading.Event()

    async def work():
        # It goes on only after a tick, so there is one.
        return await asyncio.to_thread(ticked.wait, 30)

    def on_tick():
        threads.append(threading.current_thread())
        ticked.set()

    def on_end():
        threads.append(threading.current_thread())

    assert start(work, on_tick=on_tick, on_end=on_end).result() is True
    assert len(threads) >= 2
    assert set(threads) == {threading.current_thread()}


def test_cancelling_the_waiting_cell_cancels_the_run_and_lets_it_settle():
    begun, settled = threading.Event(), []

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            settled.append("kept")

    async def cell():
        handle = start(work)

        async def wait():
            return await handle

        waiting = asyncio.create_task(wait())
        await asyncio.to_thread(begun.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert settled == ["kept"]
        assert handle.is_done

    asyncio.run(cell())


def test_a_cancelled_run_says_so_when_it_is_asked():
    async def work():
        await asyncio.Event().wait()

    handle = start(work)
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result()
    handle.cancel()  # once more, after its loop has closed, does nothing


def test_a_second_await_gives_the_same_result():
    async def work():
        return object()

    handle = start(work)
    assert handle.result() is handle.result()


def test_a_forgotten_await_displays_a_sentence_that_says_so():
    go = threading.Event()

    async def work():
        await asyncio.to_thread(go.wait, 30)

    handle = start(work, name="reproduction")
    assert "await" in repr(handle)
    assert "running" in repr(handle)
    assert "<code>await</code>" in handle._repr_html_()
    go.set()
    handle.result()
    assert "done" in repr(handle)


SCRIPT = """
import asyncio, sys
from kode_lab.lab import start

async def work():
    try:
        await asyncio.Event().wait()
    finally:
        print("kept", flush=True)

told = []

def on_tick():
    if not told:
        told.append(True)
        print("waiting", flush=True)

try:
    start(work, on_tick=on_tick).result()
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_cancels_the_run_of_a_script_which_keeps_what_it_has():
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout.readline() == "waiting\n"
        os.kill(script.pid, signal.SIGINT)
        assert script.stdout.read() == "kept\n"
        assert script.wait(30) == 130


IMPATIENT = """
import asyncio, os, signal, sys
from kode_lab.lab import start

is_asked_again = []

async def work():
    try:
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        while not is_asked_again:
            await asyncio.sleep(0.01)
        print("kept", flush=True)

def on_signal(number, frame):
    is_asked_again.append(True) if is_told else is_told.append(True)
    raise KeyboardInterrupt

is_told = []
signal.signal(signal.SIGINT, on_signal)

def on_tick():
    if not is_told:
        os.kill(os.getpid(), signal.SIGINT)

try:
    start(work, on_tick=on_tick).result()
except KeyboardInterrupt:
    os._exit(130)
"""


def test_a_second_interrupt_does_not_keep_a_run_from_being_written():
    script = subprocess.run(
        [sys.executable, "-c", IMPATIENT],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    assert (script.stdout, script.returncode) == ("kept\n", 130)


NESTED = """
import asyncio
from kode_lab.lab.nested import run_nested

async def answer():
    await asyncio.sleep(0)
    return 42

def a_blocking_callback():
    return run_nested(answer())

async def main():
    return a_blocking_callback()

print(asyncio.run(main()))
try:
    a_blocking_callback()
except RuntimeError as error:
    print(error)
"""


def test_a_blocking_callback_inside_a_loop_can_opt_into_nesting():
    # In a process of its own: the patch stays for the life of the process.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NESTED], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "42",
        "no event loop is running here: use asyncio.run(work)",
    ]
    assert done.stderr == ""
