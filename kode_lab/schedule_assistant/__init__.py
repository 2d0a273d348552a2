"""The report's agent: its configuration file, its tools, its schedule book.

``AGENTS`` is the directory with ``schedule-assistant.toml``; give it, with ``toolbox(book)``, to an
``AgentShelf``. It is also the example to copy for an agent of one's own.
"""

from pathlib import Path

from kode_lab.schedule_assistant.book import ScheduleBook
from kode_lab.schedule_assistant.postgres_book import PostgresBook
from kode_lab.schedule_assistant.schedule import FIRST_ID, Schedule
from kode_lab.schedule_assistant.tools import toolbox

__all__ = ["AGENTS", "FIRST_ID", "PostgresBook", "Schedule", "ScheduleBook", "toolbox"]

AGENTS = Path(__file__).parent
