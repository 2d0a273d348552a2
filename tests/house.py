"""A small house to hold sessions in: a model, a world that tools change, a disk that fails.

Everything here is a working part that does less than the real one, never a mock: the model answers
from the conversation that it is shown, the tools really change something, and the disk really
writes, while it remembers what a kill or a power cut at this moment would leave.
"""

import asyncio
import errno
import functools
import itertools
import os
import re
import threading
from contextlib import asynccontextmanager
from pathlib import Path

from kode_lab import sessions
from kode_lab.claude.legality import problem_of
from kode_lab.key import SessionKey
from kode_lab.message import Reply, Usage, text_of, user
from kode_lab.sessions.files.disk import PosixDisk

ADA = SessionKey.of("ada", "clerk", "s1")
BOB = SessionKey.of("bob", "clerk", "s1")
# Only for what would never end if a guarantee were broken.
PATIENCE_S = 30.0

_ids = itertools.count()


class World:
    """What tools change: notes, each once for its idempotency key, and every run of a tool."""

    def __init__(self, lab=sessions):
        ToolContext = lab.ToolContext  # noqa: N806 - a class, in the annotations below
        self.notes = {}
        self.runs = []
        self.box = lab.Toolbox()
        # A tool waits here for the text it is given, where a test put an event.
        self.gates = {}
        self.started = asyncio.Event()

        @self.box.tool
        async def note(text: str, context: ToolContext) -> str:
            """Note the text.

            Args:
                text: what.
                context: of the call.
            """
            self.runs.append((text, context))
            self.started.set()
            if text in self.gates:
                await self.gates[text].wait()
            self.notes[context.idempotency_key] = text
            return f"noted {text}"

        @self.box.tool
        def note_in_thread(text: str, context: ToolContext) -> str:
            """Note the text from a thread.

            Args:
                text: what.
                context: of the call.
            """
            self.runs.append((text, context))
            self.notes[context.idempotency_key] = text
            return f"noted {text}"

        @self.box.tool
        async def fail(text: str) -> str:
            """Fail.

            Args:
                text: with this.
            """
            raise ValueError(text)


class Clerk:
    """A model that answers ``re: <prompt>``, after the tools that the prompt asks for.

    ``note:2 x`` asks for two notes at once, ``note:1 x thread:1`` is one round of two tools,
    ``rounds:3 note:1 x`` does it three times, ``forever note:1 x`` never stops. Ids of tool calls
    are new in every reply, as a real model's are: only a journal can repeat one.
    """

    def __init__(self, gates=None):
        self.requests = []
        self.asked = asyncio.Event()
        # Prompt -> event that its answer waits for.
        self.gates = {} if gates is None else gates

    async def __call__(self, request, on_text=None):
        self.requests.append(request)
        prompt, rounds = self._prompt(request.messages)
        self.asked.set()
        if prompt in self.gates:
            await self.gates[prompt].wait()
        await asyncio.sleep(0)
        asked = re.findall(r"(note|thread|fail):(\d)", prompt)
        limit = (
            10**6 if "forever" in prompt else int((re.findall(r"rounds:(\d+)", prompt) or [1])[0])
        )
        if asked and rounds < limit:
            return Reply(tuple(self._calls(asked, prompt, rounds)), "tool_use", Usage(2, 1))
        text = f"re: {prompt}"
        if on_text is not None:
            for word in text.split():
                on_text(word)
                await asyncio.sleep(0)
        return Reply(({"type": "text", "text": text},), "end_turn", Usage(2, 1))

    @staticmethod
    def _prompt(messages):
        for back, message in enumerate(reversed(messages)):
            if message["role"] == "user" and message["content"][0]["type"] == "text":
                return text_of(message), back // 2
        raise AssertionError(f"a conversation without a prompt: {messages}")

    @staticmethod
    def _calls(asked, prompt, rounds):
        names = {"note": "note", "thread": "note_in_thread", "fail": "fail"}
        for kind, count in asked:
            for number in range(int(count)):
                yield {
                    "type": "tool_use",
                    "id": f"call_{next(_ids)}",
                    "name": names[kind],
                    "input": {"text": f"{prompt} {rounds}.{number}"},
                }


def shelf(directory, box=None, agent_id="clerk", *, lab=sessions, **fields):
    """Return the shelf with one agent that has all tools of the box."""
    box = box or lab.Toolbox()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    fields = {"model": "stand-in", "tools": list(box.names), "deadline_s": PATIENCE_S} | fields
    lines = [f"{name} = {value!r}" for name, value in fields.items()]
    path = directory / f"{agent_id}.toml"
    if not path.exists() or path.read_text(encoding="utf-8") != "\n".join(lines):
        path.write_text("\n".join(lines), encoding="utf-8")
    return lab.AgentShelf(directory, box)


@asynccontextmanager
async def managing(
    path, model=None, world=None, *, agent=None, store=None, lab=sessions, **options
):
    """Return a manager of the sessions below ``path``.

    ``agent`` holds fields of the configuration, ``store`` options of the store or a store. ``lab``
    is the package whose manager it is: the real one, or a mutant of it.
    """
    path = Path(path)
    box = world.box if world is not None else lab.Toolbox()
    if store is None or isinstance(store, dict):
        store = lab.JsonStore(path / "store", **(store or {}))
    async with lab.SessionManager(
        store=store,
        agents=shelf(path / "agents", box, lab=lab, **(agent or {})),
        model=model or Clerk(),
        **options,
    ) as manager:
        yield manager


def run(scenario, patience_s=PATIENCE_S):
    """Run the coroutine in a loop of its own; what would never end is an error."""

    async def patient():
        async with asyncio.timeout(patience_s):
            return await scenario

    return asyncio.run(patient())


async def until(condition):
    """Wait for a state that other tasks, or other processes, bring about."""
    while not condition():  # noqa: ASYNC110 - the state may be another process's
        await asyncio.sleep(0.0005)


def prompts(messages):
    """Return the texts of the user's prompts."""
    return [
        text_of(m) for m in messages if m["role"] == "user" and m["content"][0]["type"] == "text"
    ]


def assert_legal(messages):
    """The Messages API takes the conversation, continued by one more prompt."""
    body = {"model": "m", "max_tokens": 1, "messages": [*messages, user("and now?")]}
    problem = problem_of(body, "2023-06-01")
    assert problem is None, problem
    assert all(m["role"] == ("user", "assistant")[at % 2] for at, m in enumerate(messages))


def assert_idle(manager):
    """Nothing is held or waited for."""
    found = manager.statistics()
    assert (found.turns, found.sessions, found.lock.held, found.lock.waiting) == (0, 0, 0, 0)


# ---- a disk that remembers what would be left


class _File:
    def __init__(self, content):
        self.durable = bytearray(content)
        # What was done since the last sync: ("write", offset, data) or ("truncate", size).
        self.pending = []


def _do(content, change):
    kind, at, *data = change
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    if kind == "truncate":
        del content[at:]
    else:
        content[at : at + len(data[0])] = data[0]


def locked(method):
    """Let one thread at a time do this."""

    @functools.wraps(method)
    def alone(self, *arguments, **options):
        with self._lock:
            return method(self, *arguments, **options)

    return alone


class FaultyDisk(PosixDisk):
    """The real file system below ``root``, with a memory of what is only in the page cache.

    It never really syncs: what a sync makes durable is what it remembers as durable.

    ``hook(call, path, change)`` is told of each call that changes or syncs something, before it is
    done; it may raise ``OSError``. ``torn_bytes`` of a write that fails are written all the same.
    """

    __slots__ = (
        "_by_fd",
        "_files",
        "_lock",
        "_removed",
        "_synced_names",
        "calls",
        "hook",
        "root",
        "torn_bytes",
    )

    def __init__(self, root, hook=None):
        self.root = str(root)
        self.hook = hook
        self.calls = 0
        self.torn_bytes = 0
        self._by_fd = {}
        self._files = {}
        # What was removed, and may come back until its directory is synced.
        self._removed = {}
        # The journal has a thread of its own.
        self._lock = threading.RLock()
        # The root and what is below it, if it existed before or its directory was synced since.
        there = [Path(root), *Path(root).rglob("*")] if Path(root).exists() else []
        self._synced_names = {str(path) for path in there}
        for path in there:
            if path.is_file():
                self._files[str(path)] = _File(path.read_bytes())

    def fail_at(self, number, code=errno.ENOSPC, calls=("write", "truncate", "sync"), *, once=True):
        """Answer the error at the ``number``-th of such calls from now on."""
        counter = itertools.count()

        def hook(call, path, _change):
            if call in calls:
                at = next(counter)
                if at == number or (at > number and not once):
                    raise OSError(code, os.strerror(code), path)

        self.hook = hook
        return counter

    # -- the calls

    @locked
    def open(self, path, *, create):
        path = str(path)
        if create and not Path(path).exists():
            self._tell("open", path, None)
        fd = super().open(path, create=create)
        self._by_fd[fd] = path
        self._files.setdefault(path, _File(b""))
        return fd

    @locked
    def close(self, fd):
        self._by_fd.pop(fd, None)
        super().close(fd)

    @locked
    def write(self, fd, data, offset):
        path, change = self._by_fd[fd], ("write", offset, bytes(data))
        try:
            self._tell("write", path, change)
        except OSError:
            part = change[2][: self.torn_bytes]
            if part:
                super().write(fd, part, offset)
                self._files[path].pending.append(("write", offset, part))
            raise
        super().write(fd, data, offset)
        self._files[path].pending.append(change)

    @locked
    def truncate(self, fd, size_bytes):
        path, change = self._by_fd[fd], ("truncate", size_bytes)
        self._tell("truncate", path, change)
        super().truncate(fd, size_bytes)
        self._files[path].pending.append(change)

    @locked
    def sync(self, fd):
        file = self._files[self._by_fd[fd]]
        begun = list(file.pending)
        self._tell("sync", self._by_fd[fd], None)
        for change in begun:
            _do(file.durable, change)
        del file.pending[: len(begun)]

    @locked
    def sync_directory(self, path):
        self._tell("sync_directory", str(path), None)
        self._synced_names.update(map(str, Path(path).iterdir()))
        for name in [name for name in self._removed if Path(name).parent == Path(path)]:
            del self._removed[name]
            self._synced_names.discard(name)

    @locked
    def make_directory(self, path):
        if not Path(path).is_dir():
            self._tell("make_directory", str(path), None)
        super().make_directory(path)

    @locked
    def remove(self, path):
        self._tell("remove", str(path), None)
        super().remove(path)
        if str(path) in self._files:
            self._removed[str(path)] = self._files.pop(str(path))

    def _tell(self, call, path, change):
        self.calls += 1
        if self.hook is not None:
            self.hook(call, path, change)

    # -- what would be left

    @locked
    def after_kill(self, path=None, change=None, torn_bytes=0):
        """Return what kill -9 leaves now: all that was written, and a part of the write at hand."""
        image = {}
        for name, file in list(self._files.items()):
            content = image[name] = bytearray(file.durable)
            for done in list(file.pending):
                _do(content, done)
        if torn_bytes:
            _do(image[path], (*change[:2], change[2][:torn_bytes]))
        return image

    @locked
    def after_power_cut(self, random):
        """Return what a power cut leaves now: what was synced, and any part of the rest.

        Each change that was not synced is there, is not, is there in part, or is only a longer
        file of zeros; each name that was not synced is there or is not.
        """
        image = {}
        fates = {}
        back = {n: f for n, f in self._removed.items() if random.random() < 0.5}
        for name, file in sorted((back | self._files).items()):
            place = Path(name)
            chain = [str(part) for part in (place, *place.parents)]
            chain = chain[: chain.index(self.root) + 1]
            for part in chain:
                if part not in fates:
                    fates[part] = part in self._synced_names or random.random() < 0.5
            if all(fates[part] for part in chain):
                content = image[name] = bytearray(file.durable)
                for change in list(file.pending):
                    _do_perhaps(content, change, random)
        return image

    def restore(self, image, root):
        """Make a directory of an image; give it."""
        for name, content in image.items():
            path = Path(root) / Path(name).relative_to(self.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root


def _do_perhaps(content, change, random):
    fate = random.choice(("kept", "lost", "torn", "zeros"))
    if fate == "kept" or (change[0] == "truncate" and fate != "lost"):
        _do(content, change)
    elif fate == "torn":
        _do(content, (*change[:2], change[2][: random.randrange(len(change[2]) + 1)]))
    elif fate == "zeros":
        content.extend(bytes(max(0, change[1] + len(change[2]) - len(content))))
