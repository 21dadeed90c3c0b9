"""Reads models declared in a YAML file, and plans what has to be done for a cluster to serve them. No I/O.

    models:
      resnet:
        model: my_package.nets:load_resnet     # or torchscript: FILE, exported: FILE, emulated: "1.053,5.072"
        slo: 25ms
        example: float32:3,224,224

Rule 1. What the file says of a model is kept with its deployment, and compared with the file the next time.
Rule 2. A model that is not served is deployed; one of which the file now says something else gets a new version. One
        that came from a file and is in it no more is undeployed; what programs deployed is left alone.
Rule 3. ``canary`` alone changes no version: another share is set, and without it the canary is promoted. Where the file
        says again what the old version was, the canary is taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from symphony_dask.backends.emulated import Emulated
from symphony_dask.backends.named import Exported, Imported, ImportedFunction, TorchScript
from symphony_dask.config import parse_memory
from symphony_dask.control.deployments import check_share, check_version
from symphony_dask.engine.batching import PREFER
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.text import did_you_mean, shown
from symphony_dask.units import NS_PER_S, Seconds, format_duration, parse_duration_ns

#: A model's declaration, each value as it is compared: durations in ns, memory in bytes.
Declared = dict[str, Any]


def _import_path(value: object) -> str:
    module, colon, name = str(value).partition(":")
    if not module or not colon or not name:
        raise BadInput(f'{value!r} is no import path: write "module:attribute"')
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{value!r} is no text")
    return value


def _profile(value: object) -> str:
    try:
        LatencyProfile.parse(_text(value))
    except ValueError as error:
        raise BadInput(str(error)) from None
    return str(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{value!r}: give a whole number, at least 1")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{value!r}: write true or false")
    return value


def _prefer(value: object) -> str:
    if value not in PREFER:
        raise BadInput(f"{value!r:.60}: write {' or '.join(PREFER)}")
    return str(value)


def _example(value: object) -> Any:
    sample(value)
    return value


#: How each key is read. The first four say what the model is.
_READ: dict[str, Callable[[Any], Any]] = {
    "model": _import_path,
    "torchscript": _text,
    "exported": _text,
    "emulated": _profile,
    "slo": lambda value: parse_duration_ns(value, "slo"),
    "version": check_version,
    "profile": _profile,
    "example": _example,
    "max_batch": _count,
    "queue_limit": _count,
    "optimize": _text,
    "collate": _import_path,
    "memory": lambda value: parse_memory(value, "memory"),
    "pinned": _flag,
    "canary": check_share,
    "prefer": _prefer,
    "max_delay": lambda value: parse_duration_ns(value, "max_delay"),
    "policy": _text,
}

#: Keys whose values are ns.
_DURATIONS = {"slo", "max_delay"}

_KINDS: dict[str, Callable[[str], Any]] = {
    "model": Imported,
    "torchscript": TorchScript,
    "exported": Exported,
    "emulated": Emulated.parse,
}


def sample(written: object) -> Any:
    """Zeros of the dtype and shape written "float32:3,224,224"; of several inputs, a dict or list of these texts.

    Raises ``BadInput``.
    """
    if isinstance(written, dict) and written and all(isinstance(name, str) and name for name in written):
        return {name: _zeros(text) for name, text in written.items()}
    if isinstance(written, (list, tuple)) and written:
        return tuple(_zeros(text) for text in written)
    return _zeros(written)


def sample_of_options(texts: Sequence[str]) -> Any:
    """``sample`` of what a command was given: one text, several, or several with names, as "input_ids=int64:12"."""
    pairs = [(name, text) for name, named, text in (given.partition("=") for given in texts) if name and named]
    if pairs and (len(pairs) < len(texts) or len(dict(pairs)) < len(pairs)):
        text = f"examples {' '.join(texts)!r:.200}"
        raise BadInput(f"{text}: give each a name of its own, as input_ids=int64:12, or none of them a name")
    return sample(dict(pairs) if pairs else texts[0] if len(texts) == 1 else list(texts))


def _zeros(text: object) -> Any:
    import numpy as np

    dtype, _, shape = text.partition(":") if isinstance(text, str) else ("", "", "")
    try:
        if not dtype:
            raise ValueError("it is no text" if not isinstance(text, str) else "it is empty")
        return np.zeros(tuple(int(n) for n in shape.split(",") if n), dtype)
    except (TypeError, ValueError, MemoryError) as error:
        several = 'or such texts by the names of several inputs, "{input_ids: int64:12}"'
        raise BadInput(f'example {text!r:.60} cannot be read ({error}): write "float32:3,224,224", {several}') from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise BadInput(f"line {node.start_mark.line + 1}: {key!r} is there twice")
        return super().construct_mapping(node, deep)  # type: ignore[no-untyped-call]


def read(text: str) -> dict[str, Declared]:
    """The models of a declaration file by name, in its order; raises ``BadInput`` naming what is wrong, and where."""
    try:
        found = yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise BadInput(f"this is no YAML: {error}") from None
    if not isinstance(found, dict) or "models" not in found:
        raise BadInput('the file has no "models": write them as "models:", and each as "NAME:" below')
    _check_keys(found, ["models"], "the file")
    models = found["models"] or {}
    if not isinstance(models, dict):
        raise BadInput(f'"models" is a {type(models).__name__}: write each model as "NAME:" and its keys below')
    return {_text(name): _model(name, declared) for name, declared in models.items()}


def _model(name: str, declared: object) -> Declared:
    if not isinstance(declared, dict):
        raise BadInput(f"model {name!r} is {declared!r}: write its keys below it, such as slo: 25ms")
    _check_keys(declared, [*_READ], f"model {name!r}")
    kinds = [key for key in _KINDS if key in declared]
    if len(kinds) != 1:
        raise BadInput(f"model {name!r} has {kinds or 'nothing'} to say what it is: give one of {', '.join(_KINDS)}")
    if "slo" not in declared:
        raise BadInput(f'model {name!r} has no slo: add one, such as "slo: 25ms"')
    if not declared.keys() & {"profile", "example", "emulated"}:
        raise BadInput(f'model {name!r} has neither profile nor example: add "example: float32:3,224,224", say')
    read: Declared = {}
    for key, value in declared.items():
        try:
            read[key] = _READ[key](value)
        except BadInput as error:
            raise BadInput(f"model {name!r}, {key}: {error}") from None
    return read


def _check_keys(found: Mapping[Any, Any], known: list[str], what: str) -> None:
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known).removeprefix("; ") or f"it may have {', '.join(known)}"
            raise BadInput(f"{what} has an unknown key {shown(key)}: {hint}")


@dataclass(frozen=True)
class Running:
    """What serves under a name. declared, canary: what a file says of the version, None if no file does."""

    version: str
    declared: Declared | None
    canary_version: str | None = None
    canary: Declared | None = None
    share: float | None = None


@dataclass(frozen=True)
class Action:
    """One thing to do: "deploy", "update", "share", "promote", "rollback", "undeploy", or "keep" for nothing.

    changes: old and new value of each key that changes.
    """

    what: str
    name: str
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For a person, one line for the model and one for each change."""
        sign = {"deploy": "+", "undeploy": "-", "keep": "="}.get(self.what, "~")
        shown = [f"    {key}: {_shown(key, old)} -> {_shown(key, new)}" for key, (old, new) in self.changes.items()]
        if self.what == "deploy":
            shown = [f"    {key}: {_shown(key, new)}" for key, (_, new) in self.changes.items()]
        return [f"{sign} {self.what} {self.name}", *shown]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "(none)"
    return format_duration(value) if key in _DURATIONS else str(value)


def plan(wanted: Mapping[str, Declared], running: Mapping[str, Running]) -> list[Action]:
    """What to do, in the order of the file; raises ``BadInput`` where that cannot be done."""
    actions = [_action(name, declared, running.get(name)) for name, declared in wanted.items()]
    gone = [name for name, found in running.items() if name not in wanted and _from_file(found)]
    return actions + [Action("undeploy", name) for name in gone]


def _from_file(running: Running) -> bool:
    return running.declared is not None or running.canary is not None


def _action(name: str, wanted: Declared, running: Running | None) -> Action:
    share = wanted.get("canary")
    if running is None:
        if share is not None:
            raise BadInput(f"model {name!r} is not served: its first version cannot be a canary, leave that out")
        return Action("deploy", name, {key: (None, value) for key, value in wanted.items()})
    same = _content(wanted) == _content(running.declared)
    if running.share is None and same:
        return Action("keep", name)
    changes: dict[str, tuple[Any, Any]]
    if running.share is not None:
        if _content(wanted) == _content(running.canary):
            changes = {"canary": (running.share, share)}
            return Action("keep" if share == running.share else "promote" if share is None else "share", name, changes)
        if same:
            return Action("rollback", name, {"canary": (running.share, None)})
    old = running.declared or {}
    if wanted.get("version") in (running.version, running.canary_version) and wanted.get("version") is not None:
        text = f"model {name!r} is to change, and version {wanted['version']!r} of it serves already"
        raise BadInput(f"{text}: give another version, or none to have them numbered")
    keys = [key for key in _READ if key in wanted or key in old]
    changes = {key: (old.get(key), wanted.get(key)) for key in keys if old.get(key) != wanted.get(key)}
    return Action("update", name, changes)


def _content(declared: Declared | None) -> Declared | None:
    return None if declared is None else {key: value for key, value in declared.items() if key != "canary"}


def model_of(declared: Declared) -> Any:
    """What to deploy."""
    return next(make(declared[kind]) for kind, make in _KINDS.items() if kind in declared)


def options_of(declared: Declared) -> dict[str, Any]:
    """The other arguments of ``Serving.deploy``."""
    options = {key: value for key, value in declared.items() if key not in _KINDS}
    for key in _DURATIONS & options.keys():
        options[key] = Seconds(declared[key] / NS_PER_S)
    if "example" in declared:
        options["example"] = sample(declared["example"])
    if "collate" in declared:
        options["collate"] = ImportedFunction(declared["collate"])
    return options | {"declared": declared}
