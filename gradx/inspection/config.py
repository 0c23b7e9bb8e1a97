"""Transformations as plain data and back: names from a registry and values, never code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core.calls import by_new_names
from gradx.core.spec import inside_out
from gradx.core.suggestions import hint

__all__ = ["from_config", "to_config"]


# Specs whose configs are still empty, with the names that errors give them.
Waiting: TypeAlias = list[tuple[core.Spec, str, dict[str, Any]]]


def to_config(made: Any) -> dict[str, Any]:
    """Describes a transformation, a schedule or a source as plain data, such as for a config file.

    Args:
      made: anything that gradx's factories made, or a factory of yours under `gradx.recorded`.

    Returns:
      Nested dictionaries, lists, strings and numbers, ready for JSON or YAML: ``{"name": …,
      "arguments": {…}}`` with the arguments that differ from the defaults. Values that JSON
      does not have are tagged: ``{"tuple": […]}`` (a registered named tuple: with ``"of"``, its
      name), ``{"dict": [[key, value], …]}``, ``{"dtype": …}``, ``{"function": …}``,
      ``{"factory": …}``.

    Raises:
      ValueError: it holds something other than data: a function that is not `gradx.registered`, an
        array, a transformation of Optax. The message says in which argument.

    Example:
      >>> import gradx
      >>> gradx.to_config(gradx.adam(gradx.linear_schedule(1e-3, 0.0, 100), b2=0.95))
      {'name': 'adam', 'arguments': {'learning_rate': {'name': 'linear_schedule', 'arguments':
      {'init_value': 0.001, 'end_value': 0.0, 'transition_steps': 100}}, 'b2': 0.95}}
    """
    spec = getattr(made, "spec", None)
    if spec is None:
        raise ValueError(f"to_config: {core.show(made)} was not made by a recorded factory.")
    config: dict[str, Any] = {}
    waiting: Waiting = [(spec, spec.name, config)]
    while waiting:  # not by recursion: a chain that grew in a loop may be thousands deep
        spec, where, inner = waiting.pop()
        inner |= _described(spec, where, waiting)
    return config


def _described(spec: core.Spec, where: str, waiting: Waiting) -> dict[str, Any]:
    arguments = {name: _plain(v, f"{where}.{name}", waiting) for name, v in spec.arguments}
    if isinstance(spec.factory, core.Described):  # it was itself made by a factory
        return {"name": _plain(spec.factory, where, waiting), "arguments": arguments}
    if core.REGISTRY.get(core.registered_name(spec.factory)) is not spec.factory:
        raise ValueError(
            f"to_config: {where}: the factory {spec.name} is local to a function, or was defined "
            f"again since; a config names factories of modules."
        )
    return {"name": core.registered_name(spec.factory), "arguments": arguments}


def _plain(value: Any, where: str, waiting: Waiting) -> Any:
    if getattr(value, "spec", None) is not None:
        config: dict[str, Any] = {}
        waiting.append((value.spec, where, config))
        return config
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case list() if type(value) is list:
            return [_plain(v, f"{where}[{i}]", waiting) for i, v in enumerate(value)]
        case tuple() if (name := _named_tuple(type(value))) is not None:
            fields = [_plain(v, f"{where}[{i}]", waiting) for i, v in enumerate(value)]
            return {"tuple": fields, "of": name}
        case tuple() if type(value) is tuple:
            return {"tuple": [_plain(v, f"{where}[{i}]", waiting) for i, v in enumerate(value)]}
        case Mapping():
            pairs = [
                [_plain(k, where, waiting), _plain(v, f"{where}[{k!r}]", waiting)]
                for k, v in value.items()
            ]
            return {"dict": pairs}
        case np.generic() | np.ndarray() | jax.Array():
            numeric = jnp.issubdtype(value.dtype, jnp.number) or value.dtype == np.bool_
            if value.ndim == 0 and numeric and not isinstance(value, jax.core.Tracer):
                return value.item()
        case jax.lax.Precision():
            return {"precision": value.name}
        case np.dtype() | type():
            try:
                return {"dtype": jnp.dtype(value).name}
            except TypeError:
                pass
    for name, function in core.FUNCTIONS.items():
        if value is function:
            return {"function": name}
    for name, factory in core.REGISTRY.items():
        if value is factory:
            return {"factory": name}
    raise ValueError(
        f"to_config: {where} is {core.show(value)}, which is no plain data. Make it by a "
        f"factory under @gradx.recorded, or put @gradx.registered before the function."
    )


def from_config(config: Mapping[str, Any]) -> Any:
    """Makes the transformation, schedule or source that `to_config` described.

    Args:
      config: what `to_config` returned, perhaps by way of JSON. Only registered names are
        called; nothing is imported or evaluated.

    Returns:
      The transformation, schedule or source; equal to the one described.

    Raises:
      ValueError: a name or an argument that is unknown (the message lists those that exist), or
        data of another form; and whatever the factories find wrong with the arguments.

    Example:
      >>> import gradx
      >>> gradx.from_config({"name": "adam", "arguments": {"learning_rate": 0.001, "b2": 0.95}})
      adam(0.001, b2=0.95)
    """
    made: dict[int, Any] = {}
    config = _thawed(config)
    for inner in inside_out(config, _configs):
        made[id(inner)] = _remade(inner, made)
    return made[id(config)]


def _thawed(config: Any) -> Any:
    """The config in plain dicts: others, such as Flax's, may make new values at each look-up."""
    whole = [config]
    places: list[tuple[Any, Any]] = [(whole, 0)]
    while places:
        container, key = places.pop()
        match container[key]:
            case Mapping() as found:
                container[key] = dict(found)
                places += [(container[key], k) for k in found]
            case list() as found:
                container[key] = list(found)
                places += [(container[key], i) for i in range(len(found))]
    return whole[0]


def _configs(config: Any) -> Iterator[Any]:
    """The configs directly inside a config, not those inside of these."""
    inside = config.values() if isinstance(config, Mapping) else config
    for value in inside if isinstance(config, Mapping | list) else ():
        match value:
            case {"name": _, "arguments": _}:
                yield value
            case Mapping() | list():
                yield from _configs(value)


def _remade(config: Any, inner: Mapping[int, Any]) -> Any:
    if not isinstance(config, Mapping) or set(config) != {"name", "arguments"}:
        raise ValueError(
            f"from_config: wants {{'name': …, 'arguments': {{…}}}} as to_config makes it, got "
            f"{config!r}."
        )
    name, arguments = config["name"], config["arguments"]
    if not isinstance(arguments, Mapping):
        raise ValueError(f"from_config: the arguments of {name} must be a dict, got {arguments!r}.")
    factory = inner[id(name)] if id(name) in inner else _registered(name, core.REGISTRY, "factory")
    if not callable(factory):
        raise ValueError(f"from_config: {name!r} makes {core.show(factory)}, which is no factory.")
    arguments = by_new_names(getattr(factory, "__wrapped__", factory), arguments)
    spec = core.Spec(factory, ())
    allowed = list(spec.signature.parameters)
    for argument in arguments:
        if argument not in allowed:
            raise ValueError(
                f"from_config: {name} has no argument {argument!r}; it has {allowed}."
                f"{hint(argument, allowed)}"
            )
    made = {k: _made(v, inner) for k, v in arguments.items()}
    try:
        return spec.call(made)
    except (TypeError, AttributeError) as error:  # missing arguments, or of the wrong kind
        raise ValueError(f"from_config: {name} cannot be made from {made}: {error}.") from error


def _made(value: Any, inner: Mapping[int, Any]) -> Any:
    match value:
        case list():
            return [_made(v, inner) for v in value]
        case {"name": _, "arguments": _}:
            return inner[id(value)]
        case {"tuple": [*items]} if len(value) == 1:
            return tuple(_made(v, inner) for v in items)
        case {"tuple": [*items], "of": str(name)} if len(value) == 2:
            named_tuple = _registered(name, core.FUNCTIONS, "named tuple")
            return named_tuple(*(_made(v, inner) for v in items))
        case {"dict": [*pairs]} if len(value) == 1 and all(_is_pair(pair) for pair in pairs):
            return {_made(k, inner): _made(v, inner) for k, v in pairs}
        case {"dtype": str(name)} if len(value) == 1:
            try:
                return jnp.dtype(name)
            except TypeError as error:
                raise ValueError(f"from_config: there is no dtype {name!r}.") from error
        case {"precision": str(name)} if len(value) == 1:
            return _registered(name, jax.lax.Precision.__members__, "precision")
        case {"function": str(name)} if len(value) == 1:
            return _registered(name, core.FUNCTIONS, "function")
        case {"factory": str(name)} if len(value) == 1:
            return _registered(name, core.REGISTRY, "factory")
        case Mapping():
            raise ValueError(f"from_config: cannot read {value!r}.")
    return value


def _named_tuple(cls: Any) -> str | None:
    """The name of a registered class with the same fields; Optax has some under the same names."""
    for name in (core.registered_name(cls), cls.__name__):
        if getattr(core.FUNCTIONS.get(name), "_fields", None) == getattr(cls, "_fields", ()):
            return name
    return None


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and not isinstance(pair[0], list | dict)


def _registered(name: Any, registry: Mapping[str, Any], what: str) -> Any:
    if not isinstance(name, str) or name not in registry:
        raise ValueError(
            f"from_config: there is no {what} {name!r}.{hint(name, registry)} There are: "
            f"{', '.join(sorted(registry))}."
        )
    return registry[name]
