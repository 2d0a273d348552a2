"""The agent of the concurrency report: its configuration file, its tools, its schedule book.

``AGENTS`` is the directory with ``schedule-assistant.toml``: ``AgentShelf(AGENTS, toolbox(book))``.
It is also an example to copy for an agent of your own.
"""

from pathlib import Path

from kode_lab.schedule_assistant.book import ScheduleBook
from kode_lab.schedule_assistant.postgres_book import PostgresBook
from kode_lab.schedule_assistant.schedule import FIRST_ID, Schedule
from kode_lab.schedule_assistant.tools import toolbox

__all__ = ["AGENTS", "FIRST_ID", "PostgresBook", "Schedule", "ScheduleBook", "toolbox"]

AGENTS = Path(__file__).parent
