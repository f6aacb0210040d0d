"""Tables of what can be named: our own entries, and those that installed packages offer.

A package offers entries by entry points, for instance ``[project.entry-points."psd_gs.priors"]`` in its
``pyproject.toml``. Names are read off the packages' metadata; code is imported when its name is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from psd_gs.errors import PluginError, PsdGsError

E = TypeVar("E")


@dataclass(frozen=True)
class Offer:
    """What an installed package offers.

    Attributes:
        kind: ``prior``, ``reward``, ``preference`` or ``exporter``.
        name: what the user types.
        package: name and version of the package.
        licence: of the package, as it says itself.
        problem: why it cannot be used; empty if it can.
    """

    kind: str
    name: str
    package: str
    licence: str
    problem: str = ""


class Registry(Mapping[str, E], Generic[E]):
    """Entries of one kind by name.

    Names, their number and ``in`` import nothing; asking for an entry imports the package that offers it.

    Args:
        kind: for messages.
        entry: the entries' class.
        group: of the entry points.
        own: entries of this package, which no other can replace.
        prefix: put before the entry points' names.
    """

    def __init__(self, kind: str, entry: type[E], group: str, own: Mapping[str, E], prefix: str = "") -> None:
        self.kind, self.entry, self.group, self.own, self.prefix = kind, entry, group, own, prefix
        self._loaded: dict[str, E] = {}

    @cached_property
    def plugins(self) -> Mapping[str, EntryPoint]:
        """What other packages offer, by name; of two with one name the first in the alphabet of packages."""
        found: dict[str, EntryPoint] = {}
        for point in self._points():
            if (name := self.prefix + point.name) not in self.own:
                found.setdefault(name, point)
        return found

    def _points(self) -> list[EntryPoint]:
        return sorted(entry_points(group=self.group), key=lambda point: (point.name, _package(point)))

    def __getitem__(self, name: str) -> E:
        """The entry of a name.

        Raises:
            KeyError: nobody offers it.
            PluginError: the package that offers it is broken.
        """
        if name in self.own:
            return self.own[name]
        point = self.plugins[name]
        if name not in self._loaded:
            with self.explained(name):
                found = point.load()
                if not isinstance(found, self.entry):
                    raise TypeError(f"expected {point.value} to be a {self.entry.__name__}, received {found!r:.80}")
                self._loaded[name] = found
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self.plugins

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.plugins

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Say in one line which package is broken, where the code of one is called; our own errors pass.

        Raises:
            PluginError: names the package and what it raised.
        """
        try:
            yield
        except PsdGsError:
            raise
        except (Exception, SystemExit) as error:
            if name not in self.plugins:
                raise
            package = self.package(name)
            reason = (str(error).splitlines() or [""])[0][:200]
            raise PluginError(
                f"{self.kind} {name} of the package {package} is broken ({type(error).__name__}: {reason}). "
                f"Update the package, or uninstall it: pip uninstall {package.split()[0]}."
            ) from error

    def package(self, name: str) -> str:
        """Name and version of the package that offers an entry."""
        return _package(self.plugins[name])

    def licence(self, name: str) -> str:
        """Licence of the package that offers an entry, as it says itself."""
        return _licence(self.plugins[name])

    def offers(self) -> list[Offer]:
        """All entries of other packages, each imported to see whether it can be used."""
        found = []
        for point in self._points():
            name, package = self.prefix + point.name, _package(point)
            holder = "psd-gs" if name in self.own else self.package(name)
            problem = "" if holder == package else f"{self.kind} {name} of {package} is hidden by that of {holder}"
            if not problem:
                try:
                    self[name]
                except PluginError as error:
                    problem = str(error)
            found.append(Offer(self.kind, name, package, _licence(point), problem))
        return found


def _package(point: EntryPoint) -> str:
    """Name and version of the package that an entry point comes from."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def _licence(point: EntryPoint) -> str:
    stated: dict[str, str] = dict(point.dist.metadata.json) if point.dist else {}  # type: ignore[arg-type]
    return str(stated.get("license_expression") or stated.get("license") or "unknown").splitlines()[0]


def resolved(target: Any) -> Any:
    """What ``module:attribute`` names; anything but text as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
