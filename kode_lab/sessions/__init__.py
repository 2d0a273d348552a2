"""The session manager: one agent, memory and storage for each session; its turns one by one.

    manager        admission, strategies, deadlines, stop, rewind, fork, agents in memory, shutdown
    session        all that a turn may do while it holds a session
    open_turn      what an unfinished turn has done, so that another holder can continue it
    conversation   the messages in memory, and what a request shows of them
    adoption       messages that others wrote
    store          what a store must do: hold, load, journal, append, peek
    files/         the store on a directory of JSON files
    postgres/      the store in a database, for many processes and machines

Source: the right to write is a value, as in Kleppmann's fencing tokens
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from kode_lab.sessions.agent import AgentConfig, AgentShelf, ContextPolicy
from kode_lab.sessions.files.store import JsonStore
from kode_lab.sessions.manager import SessionManager
from kode_lab.sessions.postgres.store import PostgresStore
from kode_lab.sessions.store import Lease, Store
from kode_lab.sessions.ticket import TurnEvent, TurnReply
from kode_lab.sessions.tool import Pending, Tool, Toolbox, ToolContext

__all__ = [
    "AgentConfig",
    "AgentShelf",
    "ContextPolicy",
    "JsonStore",
    "Lease",
    "Pending",
    "PostgresStore",
    "SessionManager",
    "Store",
    "Tool",
    "ToolContext",
    "Toolbox",
    "TurnEvent",
    "TurnReply",
]
