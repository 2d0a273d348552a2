"""The report's agent: its configuration file, its tools, its schedule book.

``AGENTS`` is the directory with ``schedule-assistant.toml``; give it, with ``toolbox(book)``, to an
``AgentShelf``. It is also the example to copy for an agent of one's own.
"""

from pathlib import Path

from kode_lab.schedule_assistant.book import FIRST_ID, Schedule, ScheduleBook
from kode_lab.schedule_assistant.tools import toolbox

__all__ = ["AGENTS", "FIRST_ID", "Schedule", "ScheduleBook", "toolbox"]

AGENTS = Path(__file__).parent
