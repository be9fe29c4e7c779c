"""Families of interchangeable parts: one package, one file per choice, the file name is the YAML value.

Adding `optim/lion.py` makes `lion` a valid choice; nothing is registered anywhere. A module is imported only when it is
chosen, so its optional packages stay optional. This module knows no family.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from llamafactory.errors import ConfigError, MissingPackageError, did_you_mean


@dataclass(frozen=True)
class Family:
    """Parts found by file name.

    key: the YAML key whose value names the part, for error messages. package: where the files live. exports: what every
    file must define.
    """

    key: str
    package: str
    exports: tuple[str, ...]

    def names(self) -> list[str]:
        """Names of all parts, sorted; imports the package but none of its parts."""
        path = importlib.import_module(self.package).__path__
        return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))

    def load(self, name: str) -> ModuleType:
        """Import the part called `name`. Raises ConfigError when it is unknown or lacks a required export."""
        names = self.names()
        if name not in names:
            raise ConfigError(
                f"{self.key}: {name!r} is not available (choose from {', '.join(names)}){did_you_mean(name, names)}"
            )
        module = importlib.import_module(f"{self.package}.{name}")
        missing = [export for export in self.exports if not hasattr(module, export)]
        if missing:
            raise ConfigError(f"{self.key}: the file {module.__file__} does not define {', '.join(missing)}")
        return module


def require(package: str, needed_by: str, *, extra: str = "", install: str = "") -> None:
    """Raise MissingPackageError with the install command unless the import name `package` can be found.

    extra: our extra that brings it. install: what pip installs where we have no such extra; by default the package.
    """
    if importlib.util.find_spec(package) is None:
        wanted = f"'llamafactory[{extra}]'" if extra else install or package
        raise MissingPackageError(
            f"{needed_by} needs the package {package!r}, which is not installed; install it with: pip install {wanted}"
        )
