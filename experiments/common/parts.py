"""A run that is done part by part, each kept as soon as it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.common.run_folder import make_run_folder, write_json

T = TypeVar("T")

# Where a run is written makes no difference to what is written.
_PLACES = ("output", "run_folder")


class Run:
    """The folder of a run, with its options and the parts that are finished.

    Args:
        folder: exists, and is of a run with the same options.

    Attributes:
        folder: see there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, options: Any, name: str) -> Run:
        """Make a folder, or go on in the one that ``options.run_folder`` names.

        Args:
            options: a dataclass with ``output`` and ``run_folder``.
            name: of the experiment, for a new folder.

        Raises:
            ValueError: if the folder is of other options, or of no run at all.
        """
        folder: Path | None = options.run_folder
        settings = {"experiment": name, **_plain(options)}
        if folder is None:
            folder = make_run_folder(options.output, name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_other_run(folder, settings)
        write_json(settings, folder / "options.json")
        return cls(folder)

    def find(self, part: str, logs: Path | None = None) -> Any:
        """What JSON has made of a part's result; None if the part is not finished.

        Args:
            part: its name, a path without an ending.
            logs: folder that the part alone writes to. What it has left there when it was broken
                off is removed.
        """
        path = self._path(part)
        if path.exists():
            return json.loads(path.read_text())
        if logs is not None and logs.exists():
            shutil.rmtree(logs)
        return None

    def keep(self, part: str, result: T) -> T:
        """The result of a part that is finished: dataclasses, lists, dictionaries and numbers."""
        path = self._path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(_as_json(result), path)
        return result

    def _path(self, part: str) -> Path:
        return self.folder / "parts" / f"{part}.json"


def _refuse_other_run(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "options.json"
    if not path.exists():
        if any(folder.iterdir()):
            raise ValueError(
                f"run_folder {folder} is not empty, but of no run: it has no options.json; name "
                "another, or leave it out"
            )
        return
    try:
        before = dict(_flat(json.loads(path.read_text())))
    except (ValueError, AttributeError):
        raise ValueError(f"{path} cannot be read; name another run_folder") from None
    now = dict(_flat(settings))
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"run_folder {folder} is of a run with {name}={before.get(name)!r}, but now it is "
                f"{now.get(name)!r}; give the same options, or leave run_folder out for a new one"
            )


def _plain(options: Any) -> dict[str, Any]:
    """Options as JSON has them."""
    settings = {n: v for n, v in asdict(options).items() if n not in _PLACES}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_json(result: Any) -> Any:
    if is_dataclass(result) and not isinstance(result, type):
        return asdict(result)
    if isinstance(result, Mapping):
        return {key: _as_json(value) for key, value in result.items()}
    return [_as_json(v) for v in result] if isinstance(result, list | tuple) else result
