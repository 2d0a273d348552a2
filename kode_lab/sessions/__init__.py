"""The system: one agent, memory and storage for each session; turns of one session one by one.

    manager      who comes when: strategies, deadlines, residents, draining
    turn         what a holder does: ask, use, ask again, commit
    session      all that a holder may do
    open_turn    what a turn has done so far, so that another holder can go on
    store        the promise: hold, load, journal, append, peek
    json_store   the promise kept on a directory of JSON files
    postgres_store   the promise kept in a database, for many processes and machines

Source of the idea that the right to write is a value: Kleppmann's fencing tokens
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from kode_lab.sessions.agent import AgentConfig, AgentShelf, ContextPolicy
from kode_lab.sessions.files.store import JsonStore
from kode_lab.sessions.manager import SessionManager
from kode_lab.sessions.postgres.store import PostgresStore
from kode_lab.sessions.session import TurnEvent
from kode_lab.sessions.store import Lease, Store
from kode_lab.sessions.tool import Tool, Toolbox, ToolContext
from kode_lab.sessions.turn_reply import TurnReply

__all__ = [
    "AgentConfig",
    "AgentShelf",
    "ContextPolicy",
    "JsonStore",
    "Lease",
    "PostgresStore",
    "SessionManager",
    "Store",
    "Tool",
    "ToolContext",
    "Toolbox",
    "TurnEvent",
    "TurnReply",
]
