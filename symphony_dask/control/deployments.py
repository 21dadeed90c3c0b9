"""Keeps what is deployed: names, their versions, and how one version takes over from another.

Rule 1. Each version is a model of its own to the dispatcher and to the workers. A name has a number on the lane; the
        dispatcher's ``route`` says which version answers to it, so that a switch takes no time and clients notice
        nothing.
Rule 2. A version answers only after it was loaded and profiled somewhere. If that fails, what served goes on serving.
Rule 3. A version that no longer answers to its name keeps its queue until that is empty, and is unloaded then.
Rule 4. The last KEPT versions are remembered with what was measured of them, so that ``rollback`` only has to load.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from symphony_dask.backends.sample import check_sample
from symphony_dask.clock import now_ns
from symphony_dask.control.deployment import Deployment
from symphony_dask.control.loader import Loader, until
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.routing import Canary
from symphony_dask.errors import BadInput, SymphonyError, UnknownModel
from symphony_dask.text import did_you_mean, listed, shown
from symphony_dask.units import format_duration

#: Versions of a name that are remembered beside those that serve.
KEPT = 3

#: One request alone may well take so many times its l(1).
SPREAD = 1.05


@dataclass
class Versions:
    """What is deployed under a name; ``number`` is the name's on the lane, -1 before anything serves.

    earlier: versions to go back to, the last one first.
    """

    name: str
    number: int = -1
    current: Deployment | None = None
    canary: Deployment | None = None
    share: float = 0.0
    pending: Deployment | None = None
    draining: list[Deployment] = field(default_factory=list)
    earlier: list[Deployment] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    def all(self) -> list[Deployment]:
        """Every version that is known, those that serve first."""
        first = [d for d in (self.current, self.canary, self.pending) if d is not None]
        return first + self.draining + self.earlier

    def next_version(self) -> str:
        numbers = [int(d.version) for d in self.all() if d.version.isdecimal()]
        return str(max(numbers, default=0) + 1)


class Deployments:
    """All names of a scheduler. on_change: awaited when what is deployed has changed."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        loader: Loader,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self.names: dict[str, Versions] = {}
        self._dispatcher, self._loader, self._spawn, self._on_change = dispatcher, loader, spawn, on_change

    def __iter__(self) -> Iterator[Versions]:
        """Names under which something is deployed, or about to be."""
        return (v for v in self.names.values() if v.current is not None or v.pending is not None)

    def versions(self, name: str) -> Versions:
        """What serves under a name; raises ``UnknownModel``."""
        found = self.names.get(name)
        if found is None or found.current is None:
            served = [v.name for v in self.names.values() if v.current is not None]
            text = f"model {shown(name)} is not deployed; deployed are {listed(served)}"
            raise UnknownModel(f"{text}{did_you_mean(name, served)}")
        return found

    def find(self, name: str, version: str | None = None) -> tuple[int, Deployment]:
        """The number on the lane of a name, or of one version that serves, and which version that is now.

        Raises ``UnknownModel``.
        """
        versions = self.versions(name)
        assert versions.current is not None
        if version is None:
            return versions.number, versions.current
        serving = [d for d in (versions.current, versions.canary) if d is not None]
        for deployment in serving:
            if deployment.version == version:
                return deployment.model_id, deployment
        known = [d.version for d in serving]
        text = f"model {name!r} has no version {shown(version)} that serves; those that do are {known}"
        raise UnknownModel(f"{text}{did_you_mean(version, known)}")

    async def deploy(
        self, deployment: Deployment, version: str | None, canary: float | None, timeout_s: float, force: bool = False
    ) -> Versions:
        """Bring a version up and have it take over its name, or (canary) a share of its requests.

        force: though it takes other samples than the one that serves. Raises ``SymphonyError``, and whatever else keeps
        it from coming up; nothing has changed then.
        """
        versions = self.names.setdefault(deployment.name, Versions(deployment.name))
        async with versions.lock:
            deployment.version = check_version(version) if version is not None else versions.next_version()
            taken = [d.version for d in versions.all() if d not in versions.earlier]
            if deployment.version in taken:
                text = f"version {deployment.version!r} of model {deployment.name!r} is deployed already"
                raise BadInput(f"{text}: give another version, or undeploy the model first")
            if not force:
                _check_takes_the_same(versions, deployment)
            if canary is not None:
                check_share(canary)
                if versions.current is None:
                    raise BadInput(f"model {deployment.name!r} is not deployed: its first version cannot be a canary")
            await self._bring_up(versions, deployment, timeout_s)
            versions.earlier = [d for d in versions.earlier if d.version != deployment.version]
            if canary is None:
                self._take_over(versions, deployment)
            else:
                self._retire(versions, versions.canary)
                versions.canary = deployment
                self._share(versions, canary)
        await self._on_change()
        return versions

    async def promote(self, name: str) -> Versions:
        """Have the canary of a name take all its requests; raises ``UnknownModel``, ``BadInput`` if there is none."""
        async with self.versions(name).lock:
            versions = self.versions(name)
            canary = _canary(versions)
            versions.canary = None
            self._take_over(versions, canary)
        await self._on_change()
        return versions

    async def set_share(self, name: str, share: float) -> Versions:
        """Give the canary of a name another share of its requests; raises as ``promote``."""
        check_share(share)
        versions = self.versions(name)
        _canary(versions)
        self._share(versions, share)
        await self._on_change()
        return versions

    async def rollback(self, name: str, timeout_s: float) -> Versions:
        """Take a name's canary away, or without one go back to the version that served before.

        Raises ``UnknownModel``, ``BadInput`` if there is no such version, or what keeps it from coming up.
        """
        async with self.versions(name).lock:
            versions = self.versions(name)
            assert versions.current is not None
            if versions.canary is not None:
                self._dispatcher.route(name, versions.current.model_id)
                self._retire(versions, versions.canary)
                versions.canary = None
            elif not versions.earlier:
                raise BadInput(f"model {name!r} has no version before {versions.current.version!r} to go back to")
            else:
                before = versions.earlier[0]
                again = replace(
                    before,
                    model_id=self._dispatcher.new_model_id(),
                    profiles=dict(before.profiles),
                    state="loading",
                    profiling=asyncio.Lock(),
                )
                await self._bring_up(versions, again, timeout_s)
                versions.earlier.remove(before)
                self._take_over(versions, again)
        await self._on_change()
        return versions

    async def undeploy(self, name: str) -> None:
        """Stop serving all versions of a name; requests in their queues end as ``Undeployed``."""
        versions = self.versions(name)
        self.names.pop(name)
        self._dispatcher.forget_name(name)
        for deployment in versions.all():
            if deployment.model_id in self._dispatcher.models:
                self._dispatcher.remove_model(deployment.model_id)
                await self._loader.forget(deployment)
        await self._on_change()

    def restore(self, versions: Versions) -> None:
        """Serve what was deployed before a restart; its profiles are known, and workers load it when they come."""
        self.names[versions.name] = versions
        for deployment in (versions.current, versions.canary):
            if deployment is not None:
                self._serve(deployment)
        assert versions.current is not None
        self._dispatcher.numbers[versions.name] = versions.number
        self._dispatcher.route(versions.name, versions.current.model_id)
        if versions.canary is not None:
            self._share(versions, versions.share)

    async def _bring_up(self, versions: Versions, deployment: Deployment, timeout_s: float) -> None:
        """Load, profile and serve a version, which does not answer to its name yet; raises ``SymphonyError``."""
        versions.pending = deployment
        try:
            await self._loader.bring_up(deployment, timeout_s)
            alone_ns = min(p.latency_ns()[1] for p in deployment.profiles.values())
            if alone_ns > deployment.slo_ns:
                text = (
                    f"SLO {format_duration(deployment.slo_ns)} of model {deployment.name!r} cannot be met: one "
                    f"request alone takes {format_duration(alone_ns)}; raise the SLO or use a faster GPU"
                )
                raise BadInput(text)
            network_ns = self._dispatcher.network_ns()
            if round(alone_ns * SPREAD) + network_ns > deployment.slo_ns:
                deployment.warning = (
                    f"SLO {format_duration(deployment.slo_ns)} of model {deployment.name!r} leaves nothing: one "
                    f"request alone takes {format_duration(alone_ns)}, and its way to the GPU and back about "
                    f"{format_duration(network_ns)}, so most requests will be dropped; raise the SLO to "
                    f"{format_duration(round(alone_ns * 2 * SPREAD) + network_ns)}, say, or use a faster GPU"
                )
            if self.names.get(versions.name) is not versions:
                raise SymphonyError(f"model {versions.name!r} was undeployed while version {deployment.version!r} came")
            self._serve(deployment)
        except BaseException:
            deployment.state = "retired"
            await self._loader.forget(deployment)
            raise
        finally:
            versions.pending = None
            self._dispatcher.asked_ns = now_ns()

    def _serve(self, deployment: Deployment) -> None:
        self._dispatcher.add_model(
            deployment.model_id,
            deployment.name,
            deployment.slo_ns,
            deployment.profiles,
            queue_limit=deployment.queue_limit,
            version=deployment.version,
            batching=deployment.batching,
        )
        self._loader.serve(deployment)

    def _take_over(self, versions: Versions, deployment: Deployment) -> None:
        """Have a version that is up answer to its name, all at once, and drain those that did."""
        if versions.number < 0:
            versions.number = self._dispatcher.new_model_id()
        self._dispatcher.numbers[versions.name] = versions.number
        self._dispatcher.route(versions.name, deployment.model_id)
        before, versions.current = versions.current, deployment
        deployment.state = "serving"
        self._retire(versions, versions.canary)
        versions.canary = None
        self._retire(versions, before)

    def _share(self, versions: Versions, share: float) -> None:
        assert versions.current is not None
        assert versions.canary is not None
        versions.share, versions.canary.state = share, "canary"
        canary = Canary(versions.number, versions.canary.model_id, share)
        self._dispatcher.route(versions.name, versions.current.model_id, canary)

    def _retire(self, versions: Versions, deployment: Deployment | None) -> None:
        """Let a version end what it has and then unload it (rule 3)."""
        if deployment is not None:
            deployment.state = "draining"
            versions.draining.append(deployment)
            self._dispatcher.close_to_new(deployment.model_id)
            self._spawn(self._drain(versions, deployment))

    async def _drain(self, versions: Versions, deployment: Deployment) -> None:
        dispatcher, model_id = self._dispatcher, deployment.model_id
        await until(lambda: model_id not in dispatcher.models or dispatcher.is_idle(model_id))
        deployment.state = "retired"
        versions.draining.remove(deployment)
        if model_id in dispatcher.models:  # and not undeployed meanwhile
            dispatcher.remove_model(model_id)
            versions.earlier = [deployment, *versions.earlier][:KEPT]
            await self._loader.forget(deployment)
        await self._on_change()


def _check_takes_the_same(versions: Versions, deployment: Deployment) -> None:
    """Raises ``BadInput`` if the example of a version is no sample of the one that serves."""
    current = versions.current
    if current is None or deployment.example is None:
        return
    try:
        check_sample(versions.name, current.signature, deployment.example)
    except BadInput as error:
        text = f"the example of the new version is no sample of version {current.version!r}, which serves: {error}"
        remedy = (
            "deploy it under another name, or pass force=True (symphony apply --force) if nobody sends these any more"
        )
        raise BadInput(f"{text}; {remedy}") from None


def _canary(versions: Versions) -> Deployment:
    if versions.canary is None:
        raise BadInput(f"model {versions.name!r} has no canary: deploy one with deploy(..., canary=0.1)")
    return versions.canary


def check_version(version: object) -> str:
    """A version as a user may write it, "2" or "2026-11-25"; raises ``BadInput``."""
    text = str(version)
    if isinstance(version, bool) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise BadInput(f"version {version!r}: give letters, digits, '.', '_' and '-', at most 64")
    return text


def check_share(share: object) -> float:
    """A canary's share of requests; raises ``BadInput``."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise BadInput(f"canary={share!r}: give a share of the requests between 0 and 1, such as 0.1")
    return float(share)
