"""Two sessions never share a lock, and two keys never share a place, with any ids."""

import hashlib
import itertools
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kode_lab.errors import InvalidKey
from kode_lab.key import ID_LIMIT_CHARS, SessionKey

# What has broken keys elsewhere: separators, dots, escapes of our own, case, device names, and
# letters that look alike or become alike when they are normalised or folded.
NASTY = [
    ".", "..", "...", "a.", ".a", "a..", "a/../b", "../a", "/", "//", "\\", "a\\b", "a/b", ":",
    "::", "a:", ":a", "a:b", "%", "%3a", "%253a", "%2e", "%h", "a%h", "\0", "a\0", "a\0b", " ",
    "a ", " a", "a", "A", "aA", "Aa", "%41", "%61", "con", "CON", "con.txt", "nul", "aux.",
    "com1", "com\u00b9", "\u00e9", "e\u0301", "\u00c9", "E\u0301", "\u212b", "\u00c5", "A\u030a",
    "\u212a", "k", "K", "\ufb01", "fi", "\u0131", "i", "\u0130", "\u00df", "ss", "\u1e9e", "SS",
    "\u017f", "s", "\u0430", "\uff41", "\u2024", "\u2025", "\uff0e", "\uff0f", "\u2215", "\uff1a",
    "\u2236", "\uff3c", "\u200b", "a\u200b", "\u202ea", "\ufeff", "\U0001f600", "\u4e2d\u6587",
    "~", "$HOME", "*", "?", "|", "<", ">", '"', "'", "\n", "\r", "\t", "-", "-rf", "_", "x" * 119,
    "x" * 120, "x" * 121, "x" * 255, "X" * 120, "x" * ID_LIMIT_CHARS,
    "x" * (ID_LIMIT_CHARS - 1) + "y", "\U0001f600" * ID_LIMIT_CHARS,
]  # fmt: skip
FORMS = ("NFC", "NFD", "NFKC", "NFKD")

ids = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.sampled_from(".:/\\%\0 aAbhH3eE2-\u00e9\u0301\u212bi\u0131\uff0e"), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=150),
)  # fmt: skip


@st.composite
def neighbours(draw):
    """Two keys that are easily taken for each other: parts changed a little, or moved about."""
    user, session, agent = draw(ids), draw(ids), draw(ids)
    moves = [
        (user, session, agent),
        (session, user, agent),
        (user, agent, session),
        (user, agent, agent),
        (user, session, session),
        (f"{user}:{session}"[:ID_LIMIT_CHARS], session, agent),
        (user, f"{session}:{agent}"[:ID_LIMIT_CHARS], agent),
        (user, session, f"{session}:{agent}"[:ID_LIMIT_CHARS]),
        (f"{user}/{session}"[:ID_LIMIT_CHARS], agent, agent),
    ]
    changes = [
        lambda v: v,
        str.upper,
        str.lower,
        str.casefold,
        *(lambda v, form=form: unicodedata.normalize(form, v) for form in FORMS),
        lambda v: v + ".",
        lambda v: v + " ",
        lambda v: v.replace(":", "%3a"),
        lambda v: v.replace("%", "%25"),
        lambda v: SessionKey.of(v, "a").user_part,
        lambda v: v[:40] + v[41:],
    ]
    change = draw(st.sampled_from(changes))
    other = tuple(change(part)[:ID_LIMIT_CHARS] or "a" for part in draw(st.sampled_from(moves)))
    return SessionKey.of(user, agent, session), SessionKey.of(other[0], other[2], other[1])


def paths_as_file_systems_see_them(key):
    """The key's place as it is, and as systems see it that fold, normalise, trim or ban ``:``."""
    place = f"{key.user_part}/{key.instance_part}"
    yield place
    yield place.casefold()
    yield place.upper()
    for form in FORMS:
        yield unicodedata.normalize(form, place)
        yield unicodedata.normalize(form, place).casefold()
    yield "/".join(part.rstrip(" .") for part in place.split("/"))
    yield place.replace(":", "%-")  # what stands in its place on Windows


@given(neighbours())
@settings(max_examples=500, deadline=None)
@example((SessionKey("a", "b:c", "d"), SessionKey("a:b", "c", "d")))
@example((SessionKey("a", "b%3ac", "d"), SessionKey("a", "b:c", "d")))
@example((SessionKey("a", "s:x", "y"), SessionKey("a", "s", "x:y")))
@example((SessionKey("Ada", "s", "x"), SessionKey("ada", "s", "x")))
@example(
    (SessionKey("x" * 121, "s", "x"), SessionKey(SessionKey("x" * 121, "s", "x")[0], "S", "x"))
)
def test_different_keys_differ_in_lock_and_place_on_every_file_system(pair):
    one, other = pair
    if one[:2] == other[:2]:
        assert one.lock_name == other.lock_name
    else:
        assert one.lock_name != other.lock_name
    for here, there in zip(
        paths_as_file_systems_see_them(one), paths_as_file_systems_see_them(other), strict=True
    ):
        assert (here == there) == (one == other)
    assert (one.instance_id == other.instance_id) == (one[1:] == other[1:])


@given(ids, ids, ids)
@settings(max_examples=500, deadline=None)
def test_every_path_part_is_plain_and_short(user, session, agent):
    key = SessionKey.of(user, agent, session)
    for part in (key.user_part, key.instance_part):
        assert re.fullmatch(r"[a-z0-9_%-][a-z0-9_.%:-]*", part)
        assert not part.endswith(".")
        assert ".." != part != "."
        assert len(part.replace(":", "%-").encode()) <= 255
        assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part.split(":")[0])
    assert ":" not in key.user_part
    assert key.instance_part.count(":") == (session != agent)


def test_all_pairs_of_nasty_keys_have_directories_of_their_own_inside_the_root(tmp_path):
    keys = [SessionKey.of("ada", "helper", one) for one in NASTY]
    keys += [SessionKey.of(one, "helper") for one in NASTY]
    keys += [SessionKey.of(*ids) for ids in itertools.product(NASTY[:7], repeat=3)]
    keys = list(dict.fromkeys(keys))
    root = (tmp_path / "root").resolve()
    for key in keys:
        place = root / key.user_part / key.instance_part
        place.mkdir(parents=True)  # it exists already if two keys share it
        assert place.resolve().is_relative_to(root)
        assert place.resolve().parent.parent == root
        (place / "owner").write_text(repr(key), encoding="utf-8")
    for key in keys:
        assert (root / key.user_part / key.instance_part / "owner").read_text() == repr(key)
    assert len(list(tmp_path.rglob("owner"))) == len(keys)
    assert list(tmp_path.iterdir()) == [tmp_path / "root"]


def test_an_id_forged_from_the_hash_of_a_long_one_gets_a_place_of_its_own():
    """With the hash in hand one can spell out any part that is only percent-encoded bytes."""
    for number in range(200):
        long_id = f"{'x' * 150}{number}"
        shortened = SessionKey.of(long_id, "a").user_part
        digest = hashlib.sha256(long_id.encode()).hexdigest()
        assert shortened.endswith(digest)
        prefix = shortened[: -len(digest)]
        forged = prefix.rstrip("%h") + chr(int(digest[:2], 16)) + digest[2:]
        spelled = SessionKey.of(forged, "a").user_part
        assert spelled != shortened
        assert SessionKey.of(shortened, "a").user_part != shortened


def test_ordinary_ids_make_exactly_the_layout_and_lock_of_the_report():
    default = SessionKey.of("yeya", "schedule-assistant")
    assert default.session_id == "schedule-assistant"
    assert default.instance_part == "schedule-assistant"
    assert default.lock_name == "yeya:schedule-assistant"
    named = SessionKey.of("test_user", "schedule-assistant", "independent_session")
    assert named.instance_part == "independent_session:schedule-assistant"
    assert named.instance_id == "independent_session:schedule-assistant"
    assert named.lock_name == "test_user:independent_session"


def test_two_agents_of_one_session_share_its_lock_but_not_its_directory():
    one, other = SessionKey.of("ada", "planner", "s"), SessionKey.of("ada", "writer", "s")
    assert one.lock_name == other.lock_name
    assert one.instance_part != other.instance_part


@given(ids, ids, ids)
@settings(deadline=None)
def test_a_key_survives_its_json(user, session, agent):
    key = SessionKey.of(user, agent, session)
    assert SessionKey.from_json(key.to_json()) == key


def test_the_session_is_the_agent_s_own_where_none_is_given():
    for fields in (
        {"userId": "ada", "agentId": "planner"},
        {"userId": "ada", "agentId": "planner", "sessionId": None},
    ):
        assert SessionKey.from_json(fields) == SessionKey("ada", "planner", "planner")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"agentId": "a"}, "userId is missing"),
        ({"userId": "u"}, "agentId is missing"),
        ({"userId": "", "agentId": "a"}, "userId is empty"),
        ({"userId": "u", "agentId": "a", "sessionId": ""}, "sessionId is empty"),
        ({"userId": 7, "agentId": "a"}, "userId must be a string, not int"),
        ({"userId": None, "agentId": "a"}, "userId must be a string, not NoneType"),
        ({"userId": "u", "agentId": ["a"]}, "agentId must be a string, not list"),
        ({"userId": "u" * (ID_LIMIT_CHARS + 1), "agentId": "a"}, "ID_LIMIT_CHARS=10000"),
        ({"userId": "\ud800", "agentId": "a"}, "not valid Unicode"),
        (["u", "a"], "is an object with userId and agentId"),
        (None, "is an object with userId and agentId"),
    ],
)  # fmt: skip
def test_an_id_that_cannot_be_used_is_refused_by_its_name(fields, told):
    with pytest.raises(InvalidKey, match=re.escape(told)):
        SessionKey.from_json(fields)


@given(ids, ids)
@settings(deadline=None)
def test_a_key_in_a_message_is_one_short_printable_line(user, session):
    shown = str(SessionKey.of(user, "a", session))
    assert shown.isprintable()
    assert len(shown) <= 80
