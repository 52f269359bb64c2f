"""A table from names, as they stand in configs, to the components that they mean."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from lmxlab.errors import UnknownNameError, UserError, unknown_name

T = TypeVar("T")


class UnknownKeyError(UnknownNameError):
    """A key that a registry does not have; the message offers the nearest one and lists the rest."""

    def __init__(self, registry: str, key: str, allowed: list[str]):
        message = unknown_name(registry, key, allowed).removeprefix(f"Unknown {registry}")
        UserError.__init__(self, f"The {registry} registry has no key{message}")


class Registry(Generic[T]):
    """Name -> component.

    >>> colours = Registry[int]("colour")
    >>> colours.register("red", 0xFF0000)
    16711680
    >>> colours.get("red"), "red" in colours, colours.keys()
    (16711680, True, ['red'])
    """

    def __init__(self, name: str):
        self._name = name
        self._entries: dict[str, T] = {}

    @property
    def name(self) -> str:
        """What the table holds, as it stands in messages: "attention", "norm"."""
        return self._name

    @overload
    def register(self, key: str, value: T) -> T: ...
    @overload
    def register(self, key: str, value: None = None) -> Callable[[T], T]: ...
    def register(self, key: str, value: T | None = None) -> T | Callable[[T], T]:
        """Adds `value` under `key` and returns it; without a value, a decorator that does so.

        Raises:
            ValueError: the key is taken.
        """
        if value is None:
            return lambda component: self.register(key, component)
        if key in self._entries:
            raise UserError(f"The {self._name} registry already has key {key!r}; choose another name for the component")
        self._entries[key] = value
        return value

    def get(self, key: str) -> T:
        """The component named `key`.

        Raises:
            KeyError: there is none; the message lists the names there are.
        """
        if key not in self._entries:
            raise UnknownKeyError(self._name, key, self.keys())
        return self._entries[key]

    def keys(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries


def check_needs(component: Any, config: Any) -> None:
    """Raises UserError for a field of `component.needs` that the config leaves unset, naming it and its meaning."""
    for name, meaning in component.needs.items():
        if getattr(config, name) is None:
            raise UserError(f"{type(component).__name__} needs {name}: {meaning}; set it in BlockConfig")
