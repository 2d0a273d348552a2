"""A broken shelf: the configuration that all sessions share, changed by one of them."""

from __future__ import annotations

import dataclasses

from kode_lab.experiment.faults.site import Site
from kode_lab.sessions import AgentConfig, AgentShelf

__all__ = ["Mutated"]


class Mutated:
    """Adds a sentence to the shared system prompt, for everybody, now and then."""

    def __init__(self, inner: AgentShelf, site: Site) -> None:
        self._inner = inner
        self._site = site
        self._said = 0

    def current(self, agent_id: str) -> AgentConfig:
        """Give what the configuration has become."""
        config = self._inner.current(agent_id)
        self._said += self._site.delays.is_chosen(20)
        system = config.system + " Be brief." * self._said
        version = f"{config.version}+{self._said}" if self._said else config.version
        return dataclasses.replace(config, system=system, version=version)
