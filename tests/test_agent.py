"""One configuration for all sessions: shared by identity, immutable, and renewed by its file."""

import asyncio
import dataclasses
import os
import re
import threading
import types

import pytest

from kode_lab.errors import InvalidConfig, InvalidKey, UnknownAgent, UnknownTool
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions.agent import (
    CONFIG_LIMIT_BYTES,
    STRATEGIES,
    AgentConfig,
    AgentShelf,
    ContextPolicy,
    config_of,
    shelf_of,
)
from kode_lab.sessions.tool import Toolbox


@pytest.fixture
def box():
    box = Toolbox()

    @box.tool
    def look(day: str, how: list[int] | None = None) -> str:
        """Look at a day."""
        return f"{day} {how}"

    @box.tool
    def write(text: str) -> str:
        """Write it down."""
        return text

    return box


@pytest.fixture
def agents(tmp_path):
    (tmp_path / "planner.toml").write_text('model = "m"\nsystem = "one"\ntools = ["look"]\n')
    return tmp_path


class Told:
    """What a shelf told of problems."""

    def __init__(self):
        self.problems = []

    def __call__(self, problem):
        self.problems.append(str(problem))


def test_all_sessions_share_one_object_until_the_file_changes(agents, box):
    shelf = AgentShelf(agents, box)
    config = shelf.current("planner")
    assert all(shelf.current("planner") is config for _ in range(100))
    assert (config.agent_id, config.model, config.system) == ("planner", "m", "one")
    assert config.tools == (box.get("look"),)
    assert config.tool("look") is box.get("look")
    assert config.tool("write") is None
    assert config.tool_names == ("look",)


def test_a_changed_file_gives_a_new_version_and_leaves_the_old_object_as_it_was(agents, box):
    shelf = AgentShelf(agents, box)
    before = shelf.current("planner")
    (agents / "planner.toml").write_text('model = "m"\nsystem = "two"\n')
    after = shelf.current("planner")
    assert (before.system, after.system) == ("one", "two")
    assert before.version != after.version
    assert shelf.current("planner") is after
    assert shelf.problems() == ()


def test_a_change_is_seen_although_size_and_stamp_stay_the_same(agents, box):
    path = agents / "planner.toml"
    stat = path.stat()
    # Every look is at the very moment of the stamp, when it says nothing about what comes later.
    shelf = AgentShelf(agents, box, clock_ns=lambda: stat.st_mtime_ns)
    for system in ("one", "two", "six", "ten"):
        path.write_text(re.sub('system = "..."', f'system = "{system}"', path.read_text()))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a coarse clock would leave it
        assert path.stat().st_size == stat.st_size
        assert shelf.current("planner").system == system


def test_a_file_that_rested_is_not_read_again(agents, box):
    path = agents / "planner.toml"
    os.utime(path, ns=(0, 10**18))
    shelf = AgentShelf(agents, box)
    config = shelf.current("planner")
    stat = path.stat()
    # Changed under a forged stamp: only a shelf that reads the file each time could notice.
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(0, 10**18))
    assert path.stat().st_ino == stat.st_ino
    assert shelf.current("planner") is config


def test_a_file_that_is_only_touched_or_replaced_by_its_like_keeps_the_object(agents, box):
    path = agents / "planner.toml"
    shelf = AgentShelf(agents, box)
    config = shelf.current("planner")
    os.utime(path, ns=(1, 1))
    assert shelf.current("planner") is config
    other = agents / "planner.new"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    assert shelf.current("planner") is config


def test_a_broken_file_is_told_once_and_the_old_version_goes_on_until_it_is_mended(agents, box):
    path, told = agents / "planner.toml", Told()
    shelf = AgentShelf(agents, box, on_problem=told)
    config = shelf.current("planner")
    good = path.read_text()
    path.write_text(good + "system = ")
    assert all(shelf.current("planner") is config for _ in range(3))
    (problem,) = shelf.problems()
    assert isinstance(problem, InvalidConfig)
    assert re.search(
        rf"planner.toml: not TOML: .*line 4.*; version {config.version} stays in use", str(problem)
    )
    path.write_text(good.replace("look", "paint"))
    assert shelf.current("planner") is config
    (problem,) = shelf.problems()
    assert isinstance(problem, UnknownTool)
    path.unlink()
    assert all(shelf.current("planner") is config for _ in range(3))
    assert "planner.toml is gone: put it back" in str(shelf.problems()[0])
    assert len(told.problems) == 3
    path.write_text(good)
    assert shelf.current("planner") is config
    assert shelf.problems() == ()
    path.write_text(good.replace("one", "two"))
    assert shelf.current("planner").system == "two"
    assert len(told.problems) == 3


def test_a_broken_file_without_an_older_version_is_an_error_each_time_and_told_once(agents, box):
    (agents / "writer.toml").write_text("model = 7")
    told = Told()
    shelf = AgentShelf(agents, box, on_problem=told)
    for _ in range(3):
        with pytest.raises(InvalidConfig, match=r"writer.toml: model is 7: use a text"):
            shelf.current("writer")
    assert len(told.problems) == len(shelf.problems()) == 1
    assert shelf.current("planner").system == "one"


@pytest.mark.parametrize(
    "agent_id",
    [
        "stranger", "", ".", "..", "../planner", "sub/planner", "/etc/passwd", "a\\b", "planner\0",
        "planner.toml", "C:planner", ".hidden", "plan ner", "x" * 101, "x" * 10_000, "\ud800",
        "\u4e2d" * 100, "planner\n",
    ],
)  # fmt: skip
def test_an_agent_id_finds_only_a_file_of_its_name_in_the_directory(agents, box, agent_id):
    (agents / "sub").mkdir()
    for path in (
        agents / "sub" / "planner.toml",
        agents / ".hidden.toml",
        agents / "plan ner.toml",
    ):
        path.write_text('model = "hidden"')
    inner = agents / "inner"
    inner.mkdir()
    (inner / "planner.toml").write_text('model = "m"')
    with pytest.raises(UnknownAgent, match="has: planner "):
        AgentShelf(inner, box).current(agent_id)
    with pytest.raises(UnknownAgent, match="has: planner "):
        AgentShelf(agents, box).current(agent_id)


def test_a_file_that_comes_later_is_found(agents, box):
    shelf = AgentShelf(agents, box)
    with pytest.raises(UnknownAgent):
        shelf.current("writer")
    (agents / "writer.toml").write_text('model = "w"')
    assert shelf.current("writer").model == "w"
    assert shelf.agent_ids == ("planner", "writer")


def test_what_is_not_a_readable_file_is_refused_at_once(agents, box):
    (agents / "folder.toml").mkdir()
    os.mkfifo(agents / "pipe.toml")  # reading it would never end
    (agents / "huge.toml").write_bytes(b"#" * (CONFIG_LIMIT_BYTES + 1))
    (agents / "dangling.toml").symlink_to(agents / "nothing")
    shelf = AgentShelf(agents, box)
    for name in ("folder", "pipe"):
        with pytest.raises(InvalidConfig, match=f"{name}.toml is not a file"):
            shelf.current(name)
    with pytest.raises(InvalidConfig, match=f"CONFIG_LIMIT_BYTES={CONFIG_LIMIT_BYTES}"):
        shelf.current("huge")
    with pytest.raises(UnknownAgent):
        shelf.current("dangling")
    with pytest.raises(InvalidConfig, match="there is no directory of agents"):
        AgentShelf(agents / "missing", box)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the field 'model' is missing"),
        ("model =", "not TOML: .*line 1"),
        ('model = "m"\n\nmodel = "n"', "not TOML: .*line 3"),
        ("model = '\xff'", "not TOML: .*utf-8"),
        ('model = ""', "model is '': use a text of 1 to 200"),
        ("model = true", "model is True"),
        ('model = "m"\nmodle = "n"', "there is no field 'modle': did you mean 'model'"),
        ('model = "m"\nsteplimit = 3', "did you mean 'step_limit'"),
        ('model = "m"\nagent_id = "x"', "there is no field 'agent_id'"),
        ('model = "m"\nqqq = 3', "there is no field 'qqq'; fields: model, system, max_tokens"),
        ('model = "m"\n[limits]\nstep_limit = 3', "there is no field 'limits'"),
        ('model = "m"\nsystem = ["a"]', "system is "),
        ('model = "m"\ntools = "look"', "tools is 'look': list different names"),
        ('model = "m"\ntools = ["look", "look"]', "list different names"),
        ('model = "m"\ntools = ["look", 3]', "list different names"),
        ('model = "m"\nmax_tokens = 0', "max_tokens is 0: use a whole number from 1 to"),
        ('model = "m"\nmax_tokens = 1.5', "max_tokens is 1.5"),
        ('model = "m"\nmax_tokens = true', "max_tokens is True"),
        ('model = "m"\ntemperature = 1.1', "temperature is 1.1: use a number from 0 to 1"),
        ('model = "m"\ntemperature = nan', "temperature is nan"),
        ('model = "m"\ntemperature = false', "temperature is False"),
        ('model = "m"\nstep_limit = 0', "step_limit is 0"),
        ('model = "m"\nstep_limit = 1001', "from 1 to 1000"),
        ('model = "m"\ndeadline_s = 0', "deadline_s is 0"),
        ('model = "m"\ndeadline_s = inf', "deadline_s is inf"),
        ('model = "m"\ndeadline_s = "5"', "deadline_s is '5'"),
        ('model = "m"\ntool_timeout_s = -1', "tool_timeout_s is -1"),
        ('model = "m"\nqueue_limit = -1', "queue_limit is -1"),
        ('model = "m"\nstrategy = "queue"', "use one of enqueue, reject, interrupt, rollback"),
        ('model = "m"\nstrategy = ["enqueue"]', "use one of enqueue"),
        ("a = " + "[" * 100_000, "not TOML"),
        ('model = "m"\ncontext = "some"', "context is 'some': use \"all\", or one of window"),
        ('model = "m"\ncontext = { turns = 3 }', "context has no field 'turns'; fields: window_t"),
        ('model = "m"\ncontext = { window_turns = -1 }', "context is ContextPolicy"),
        ('model = "m"\ncontext = { window_turns = 1, window_tokens = 1 }', "context is Con"),
        ('model = "m"\ncontext = { compact_above_tokens = true }', "context is ContextPolicy"),
        ('model = "m"\ncache = 1', "cache is 1: use true or false"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_meant_is_refused_by_its_place(box, content, told):
    with pytest.raises(InvalidConfig, match=f"^planner.toml: .*{told}"):
        config_of("planner", content.encode("latin-1"), box, where="planner.toml")


def test_a_tool_that_is_not_registered_is_refused_with_the_names_there_are(box):
    with pytest.raises(UnknownTool, match="no tool 'paint' is registered; tools: look, write"):
        config_of("planner", b'model = "m"\ntools = ["paint"]', box)


def test_the_ends_of_each_range_are_accepted(box):
    for least in (True, False):
        content = 'model = "m"\n' + "\n".join(
            f"{name} = {values[0] if least else values[1]}"
            for name, values in {
                "max_tokens": (1, 1_000_000),
                "temperature": (0, 1.0),
                "step_limit": (1, 1_000),
                "deadline_s": (0.001, 86_400),
                "queue_limit": (0, 1_000_000),
                "tool_timeout_s": (0.001, 86_400),
            }.items()
        )
        config = config_of("planner", content.encode(), box)
        assert config.queue_limit == (0 if least else 1_000_000)
    for strategy in STRATEGIES:
        assert (
            config_of("a", f'model = "m"\nstrategy = "{strategy}"'.encode(), box).strategy
            == strategy
        )


def test_only_the_model_is_required_and_a_windows_file_is_read_too(box):
    config = config_of("planner", b'\xef\xbb\xbfmodel = "m"\r\n', box)
    assert config.model == "m"
    assert config.temperature is None
    assert config.tools == config.tool_specs == ()
    assert config.strategy == "enqueue"


def test_a_context_policy_is_a_table_of_the_file(box):
    for content, policy in (
        ("", ContextPolicy()),
        ('context = "all"', ContextPolicy()),
        ("context = { window_turns = 0 }", ContextPolicy(window_turns=0)),
        ("[context]\nwindow_tokens = 50_000", ContextPolicy(window_tokens=50_000)),
        (
            "[context]\ncompact_above_tokens = 9\nkeep_turns = 0",
            ContextPolicy(compact_above_tokens=9, keep_turns=0),
        ),
    ):
        assert config_of("a", f'model = "m"\n{content}'.encode(), box).context == policy


def add(one: int, two: int) -> int:
    """Add two numbers."""
    return one + two


def test_an_agent_is_built_from_python_values_with_the_defaults_of_a_file(box):
    config = AgentConfig("planner", "m", tools=box)
    from_file = config_of("planner", b'model = "m"\ntools = ["look", "write"]', box)
    for field in dataclasses.fields(config):
        if field.name not in ("version", "tool_specs"):
            assert getattr(config, field.name) == getattr(from_file, field.name)
    assert list(map(dict, config.tool_specs)) == list(map(dict, from_file.tool_specs))
    assert config.version == AgentConfig("planner", "m", tools=box).version
    assert config.version != AgentConfig("planner", "m", tools=[add]).version
    assert config.version != AgentConfig("planner", "m", "be brief", box).version
    assert AgentConfig("planner", "m", version="7").version == "7"
    assert AgentConfig("planner", "m", tools=[add, box.get("look")]).tool_names == ("add", "look")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": ""}, "agent 'planner': model is '': use a text of 1 to 200 characters"),
        ({"model": None}, "agent 'planner': model is None"),
        ({"step_limit": True}, "step_limit is True: use a whole number from 1 to 1000"),
        ({"deadline_s": float("nan")}, "deadline_s is nan"),
        ({"strategy": "queue"}, "strategy is 'queue': use one of enqueue, reject"),
        ({"context": {"window_turns": 3}}, "context is {'window_turns': 3}: use"),
        ({"tools": "look"}, "agent 'planner': tools is a str: pass a Toolbox, or a list"),
        ({"tools": ["look"]}, "agent 'planner': a tool's name is"),
        ({"tools": [lambda: 1]}, "agent 'planner': a tool's name is"),
    ],
)
def test_a_wrong_value_of_an_agent_in_python_is_refused_in_one_sentence(fields, told):
    with pytest.raises(InvalidConfig, match=told):
        AgentConfig(**{"agent_id": "planner", "model": "m"} | fields)


def test_the_name_of_an_agent_in_python_is_an_agent_id():
    with pytest.raises(InvalidKey, match="agentId is empty"):
        AgentConfig("", "m")


def test_a_shelf_holds_agents_of_python_and_replaces_them_at_the_next_turn(agents, box):
    one, other = AgentConfig("one", "m"), AgentConfig("two words", "m")
    shelf = AgentShelf(agents=[one, other])
    assert shelf.current("one") is one
    assert shelf.current("two words") is other
    assert shelf.agent_ids == ("one", "two words")
    for name in ("three", "../one", "planner"):
        with pytest.raises(UnknownAgent, match=r"there is no agent .*; agents: one, two words"):
            shelf.current(name)
    shelf.put(newer := AgentConfig("one", "n"))
    assert shelf.current("one") is newer
    both = AgentShelf(agents, box, agents=[one])
    assert both.agent_ids == ("one", "planner")
    assert both.current("planner").system == "one"


def test_what_is_not_a_shelf_is_refused_in_one_sentence(agents, box):
    one = AgentConfig("one", "m")
    assert shelf_of(one).agent_ids == shelf_of([one]).agent_ids == ("one",)
    assert shelf_of({"one": one}).current("one") is one
    shelf = AgentShelf(agents, box)
    assert shelf_of(shelf) is shelf
    for wrong, told in (
        ({"two": one}, "'two' is the name of agent 'one': use one"),
        ("agents", r"agents is a str: pass AgentShelf\(directory, toolbox\), or a list"),
        (None, "agents is a NoneType"),
        ([one, one], "two agents are called 'one'"),
        ([{"model": "m"}], r"an agent is a dict: pass AgentConfig\(agent_id, model"),
    ):
        with pytest.raises(InvalidConfig, match=told):
            shelf_of(wrong)
    with pytest.raises(InvalidConfig, match="toolbox is a list: pass a Toolbox"):
        AgentShelf(agents, [add])


def test_a_configuration_is_immutable_to_its_depth(agents, box):
    config = AgentShelf(agents, box).current("planner")

    def mutable_parts(value):
        if isinstance(value, types.MappingProxyType | tuple):
            for inner in value.values() if isinstance(value, types.MappingProxyType) else value:
                yield from mutable_parts(inner)
        elif not isinstance(value, str | int | float | bool | None):
            yield value

    for field in dataclasses.fields(config):
        with pytest.raises(AttributeError):
            setattr(config, field.name, None)
        if field.name != "tools":
            assert list(mutable_parts(getattr(config, field.name))) == []
    with pytest.raises(AttributeError):
        config.tools[0].name = "other"
    with pytest.raises(TypeError):
        config.tool_specs[0]["input_schema"]["properties"]["day"]["type"] = "number"
    with pytest.raises((AttributeError, TypeError)):
        config.notes = "no room for more"


def test_many_threads_asking_while_the_file_changes_see_only_whole_versions(agents, box):
    path = agents / "planner.toml"
    shelf = AgentShelf(agents, box)
    shelf.current("planner")
    is_done = threading.Event()
    seen, failed = set(), []

    def ask():
        try:
            while not is_done.is_set():
                config = shelf.current("planner")
                seen.add((config.version, config.model, config.system))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(30):
        fresh = agents / "planner.new"
        fresh.write_text(f'model = "m{number}"\nsystem = "s{number}"\n')
        fresh.replace(path)
        assert shelf.current("planner").model == f"m{number}"
    is_done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({version for version, _, _ in seen}) == len(seen)
    assert all(system in ("one", f"s{model[1:]}") for _, model, system in seen)


def test_the_schedule_assistant_s_own_file_is_good(tmp_path):
    book = ScheduleBook(tmp_path / "book.sqlite")
    config = AgentShelf(AGENTS, toolbox(book)).current("schedule-assistant")
    assert config.tool_names == (
        "create_schedule",
        "query_schedules",
        "update_schedule",
        "delete_schedule",
    )
    assert config.step_limit >= 9  # the report's second session took nine model calls
    book.close()


def test_asking_needs_no_event_loop_and_does_not_leave_it(agents, box):
    shelf = AgentShelf(agents, box)

    async def scenario():
        return shelf.current("planner")

    assert asyncio.run(scenario()) is shelf.current("planner")
