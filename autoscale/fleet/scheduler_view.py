"""Shows a controller the running Dask scheduler: its workers, signals, drains and ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autoscale.fleet.fleet import Launch, Offer
from autoscale.fleet.view import Draining, Intent, View, Worker
from symphony_dask.errors import NotServing
from symphony_dask.names import name_list
from symphony_dask.wire.rpc_replies import checked, value_of

if TYPE_CHECKING:
    from distributed import Security

#: An RPC may take so long, s: a starting scheduler answers when its engine is compiled.
_CALL_S = 120.0


class DaskCluster:
    """The scheduler at ``address``; connects on first use, and again when the connection was lost.

    security: Dask's ``Security`` or its arguments. timeout_s: of a connection.
    """

    def __init__(self, address: str, *, security: Security | None = None, timeout_s: float = 30.0) -> None:
        self.address = address
        self._security = security
        self._timeout_s = timeout_s
        self._client: Any = None
        self._known = False

    def view(self, fleet: str, report: Mapping[str, Any] | None = None) -> View:
        return view_of(self.call("fleet", fleet=fleet, report=dict(report) if report is not None else None))

    def drain(self, ids: Sequence[str], why: str) -> None:
        self.call("drain", workers=name_list(ids, "worker"), why=why)

    def undrain(self, ids: Sequence[str]) -> None:
        self.call("undrain", workers=name_list(ids, "worker"))

    def retire(self, ids: Sequence[str], *, force: bool, wait_s: float) -> Mapping[str, str]:
        names = name_list(ids, "worker")
        states: dict[str, str] = self.call("retire", workers=names, force=force, wait_s=wait_s)
        return states

    def intend(self, fleet: str, version: int, launch: Launch) -> int | None:
        new: int | None = self.call("intend", fleet=fleet, version=version, **entry_of(launch))
        return new

    def forget(self, fleet: str, launch: Launch) -> None:
        self.call("forget", fleet=fleet, slot=launch.slot, generation=launch.generation)

    def signals(self) -> Any:
        """What a policy sees, ``load_signals.Signals``."""
        from autoscale.policies.signals import Signals

        return Signals.from_reply(self.call("signals"))

    def record_scaling(self, inputs: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
        """Have a recording under way keep one decision."""
        self.call("record_scaling", inputs=dict(inputs), decision=dict(decision))

    def call(self, operation: str, **arguments: object) -> Any:
        """An RPC of the plugin's; raises our own errors, and ``NotServing`` where the scheduler cannot be reached."""
        from distributed import Client

        try:
            if self._client is None or self._client.status != "running":
                self.close()
                options = {"security": self._security, "timeout": self._timeout_s, "set_as_default": False}
                self._client = Client(self.address, **options)
            if not self._known:
                # A scheduler that compiles its engine answers this one only, when it has.
                info = self._sync("info")
                if isinstance(info, dict):
                    checked(info)
                if not info:
                    self.close()
                    text = f"the scheduler at {self.address} does not run Symphony"
                    raise NotServing(f"{text}: start it with --preload symphony_dask, or deploy a model first")
                self._known = True
            reply = self._sync(operation, **arguments)
        except (OSError, TimeoutError, ValueError, AttributeError) as error:
            text = f"the scheduler at {self.address} does not answer ({type(error).__name__}: {error})"
            raise NotServing(f"{text}; is it up, with --preload symphony_dask, and reachable from here?") from error
        if not isinstance(reply, dict):
            self._known = False  # it may have started anew
            raise NotServing(f"the scheduler at {self.address} does not know {operation!r}: is its Symphony older?")
        return value_of(reply)

    def _sync(self, operation: str, **arguments: object) -> Any:
        rpc = getattr(self._client.scheduler, f"symphony_{operation}")
        return self._client.sync(rpc, callback_timeout=_CALL_S, **arguments)

    def close(self) -> None:
        if self._client is not None:
            self._client.close(timeout=2)
            self._client, self._known = None, False

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def entry_of(launch: Launch) -> dict[str, Any]:
    """A launch as the ledger keeps it."""
    return {"slot": launch.slot, "generation": launch.generation, "launch": asdict(launch.offer)}


def view_of(reply: Mapping[str, Any]) -> View:
    """From the plain values of the RPC ``symphony_fleet``."""
    return View(
        workers=tuple(
            Worker(w["name"], int(w["gpus"]), int(w["rank"]), int(w["in_flight"]), bool(w["draining"]))
            for w in reply["workers"]
        ),
        drains={key: Draining(**drain) for key, drain in reply["drains"].items()},
        intents=tuple(
            Intent(Launch(int(e["slot"]), int(e["generation"]), Offer(**e["launch"])), float(e["age_s"]))
            for e in reply["launches"]
        ),
        version=int(reply["version"]),
        age_s=float(reply["age_s"]),
        loading=tuple(reply["loading"]),
    )
