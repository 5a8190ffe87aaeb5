"""Reload of the proxy's files: certificates, link map, profiles and scenario."""

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from hypergpu.common.errors import HyperGPUError
from hypergpu.common.files import read_text
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.schedule import Entry, Schedule
from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.server import Proxy
from hypergpu.netsim_proxy.link.profiles import Profile
from hypergpu.netsim_proxy.options import ProxyOptions, ProxySettings

log = structlog.get_logger()

_MAX_FILE_BYTES: Final = 4 << 20


class Files:
    """The files that the proxy was started with.

    All are read and checked before anything changes: one that does not hold leaves all as it was. A file that holds
    what it held is not applied again, so that a scenario does not begin anew because a profile changed.
    """

    def __init__(self, options: ProxyOptions, settings: ProxySettings, catalogue: ProfileRegistry) -> None:
        self._options, self._catalogue = options, catalogue
        self._given_links = settings.client_link, settings.server_name_link
        self._texts: dict[Path, str] = {}
        self._planned: list[Entry] = []
        self._lock = asyncio.Lock()
        self.link_map = LinkMap.of(*self._given_links)

    async def load_profiles(self) -> None:
        """Read the profiles before there are links.

        Raises:
            HyperGPUError: the file cannot be read or does not hold.
        """
        path = self._options.profiles
        if path is not None:
            self._texts[path] = await asyncio.to_thread(read_text, path, _MAX_FILE_BYTES)
            self._catalogue.add(await self._catalogue.read_profiles(self._texts[path], path))

    async def load(self, links: LinkRegistry, schedule: Schedule, proxy: Proxy | None = None) -> list[str]:
        """Read every file and apply those that have changed; return their names.

        Raises:
            HyperGPUError: a file that cannot be read or does not hold; everything stays as it was.
        """
        async with self._lock:
            options = self._options
            named = [path for path in (options.link_map, options.profiles, options.scenario) if path is not None]
            texts = {path: await asyncio.to_thread(read_text, path, _MAX_FILE_BYTES) for path in named}
            changed = [path for path in named if self._texts.get(path) != texts[path]]
            await self._apply({path: texts[path] for path in changed}, links, schedule, proxy)
            self._texts = texts
            return [str(path) for path in changed]

    async def _apply(
        self, texts: Mapping[Path, str], links: LinkRegistry, schedule: Schedule, proxy: Proxy | None
    ) -> None:
        """Check all of `texts`, and then apply them."""
        options, link_map, scenario = self._options, self.link_map, None
        profiles: Mapping[str, Profile] = {}
        if options.link_map is not None and options.link_map in texts:
            from hypergpu.netsim_proxy.config.link_map_file import parse_link_map  # noqa: PLC0415 - 4 MB of models, only for a file

            read = partial(parse_link_map, texts[options.link_map], str(options.link_map), *self._given_links)
            link_map = await asyncio.to_thread(read)
        if options.profiles is not None and options.profiles in texts:
            profiles = await self._catalogue.read_profiles(texts[options.profiles], options.profiles)
        if options.scenario is not None and options.scenario in texts:
            scenario = await self._catalogue.read_scenario(texts[options.scenario], str(options.scenario), profiles)
            schedule.require_room(len(scenario.events), sum(event.size for event in scenario.events))
        if proxy is not None:
            proxy.reload_certificates()
            proxy.link_map = link_map
        self.link_map = link_map
        self._catalogue.change(profiles, links)
        if scenario is not None:
            schedule.forget(self._planned)
            self._planned = await self._catalogue.apply_scenario(scenario, links, schedule)


class Reload:
    """Reload, on SIGHUP or by the control API."""

    def __init__(self, files: Files, links: LinkRegistry, schedule: Schedule, proxy: Proxy) -> None:
        self._files, self._links, self._schedule, self._proxy = files, links, schedule, proxy
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self) -> list[str]:
        """Reread all files; return the names of those that have changed.

        Raises:
            HyperGPUError: a file that cannot be read or does not hold; everything stays as it was.
        """
        try:
            changed = await self._files.load(self._links, self._schedule, self._proxy)
        except HyperGPUError as error:
            log.error("reload refused: everything stays as it was", reason=str(error))
            raise
        log.info("reloaded", changed=changed)
        return changed

    def start(self) -> None:
        """Reread all files in the background, and log the result."""
        task = asyncio.get_running_loop().create_task(self._quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self) -> None:
        with contextlib.suppress(HyperGPUError):
            await self()
