"""Checkpoint files: written at once or not at all, with a digest by which damage is found."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"avalanche-hnet checkpoint, format 1, SHA-256 "
_HEADER_SIZE = len(_MAGIC) + 64 + 1
_NAME = re.compile(r"checkpoint-(\d{8})(?:-within-(\d{8}))?\.pt")
_TEMPORARY = ".checkpoint.tmp"


class DamagedError(Exception):
    """A file is not what was written."""


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a folder.

    Attributes:
        number: later files have higher ones.
        base: number of the file with the state at the start of the experience that this one is in
            the middle of; None at the end of a call.
    """

    number: int
    base: int | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        within = "" if self.base is None else f"-within-{self.base:08d}"
        return f"checkpoint-{self.number:08d}{within}.pt"


class CheckpointFolder:
    """The last few checkpoints of one run.

    Args:
        path: of the folder, which is made if it is not there.
        keep: how many of them.

    Raises:
        OSError: if nothing can be written there.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / _TEMPORARY).write_bytes(b"")
            (path / _TEMPORARY).unlink()
        except OSError as error:
            raise _in_words(path, error) from None
        # Numbers are never used twice, so that a damaged file is never taken for a newer one.
        numbers = [
            int(n) for p in path.iterdir() for n in re.findall(r"checkpoint-(\d{8})", p.name)
        ]
        self._next = max(numbers, default=-1) + 1

    def files(self) -> list[CheckpointFile]:
        """All checkpoints, the newest first."""
        matches = [_NAME.fullmatch(path.name) for path in self.path.iterdir()]
        found = [
            CheckpointFile(int(m[1]), None if m[2] is None else int(m[2])) for m in matches if m
        ]
        return sorted(found, key=lambda file: file.number, reverse=True)

    def write(self, state: Mapping[str, Any], base: CheckpointFile | None = None) -> CheckpointFile:
        """Add a checkpoint, and remove those that are older than the last few.

        Raises:
            OSError: if it cannot be written; those that were there are still there then.
        """
        file = CheckpointFile(self._next, None if base is None else base.number)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getbuffer()
        header = _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
        temporary = self.path / _TEMPORARY
        try:
            with temporary.open("wb") as stream:
                stream.write(header)
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path / file.name)
            _sync_folder(self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _in_words(self.path, error) from None
        self._next += 1
        self._prune()
        return file

    def read(self, file: CheckpointFile) -> dict[str, Any]:
        """The state in a file; nothing in it is run.

        Raises:
            DamagedError: if it is not what was written.
            ValueError: if it is, but holds something else than tensors and plain values.
        """
        try:
            content = (self.path / file.name).read_bytes()
        except OSError as error:
            raise DamagedError(f"cannot be read: {error.strerror}") from None
        header, payload = content[:_HEADER_SIZE], memoryview(content)[_HEADER_SIZE:]
        if not (header.startswith(_MAGIC) and header.endswith(b"\n")):
            raise DamagedError("does not begin as a checkpoint of this format does")
        if hashlib.sha256(payload).hexdigest().encode() != header[len(_MAGIC) : -1]:
            raise DamagedError("is not what was written: its checksum differs")
        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{self.path / file.name} holds something else than tensors and plain values, and "
                f"was not loaded: {str(error).splitlines()[0]}"
            ) from None
        if not isinstance(state, dict):
            raise ValueError(f"{self.path / file.name} must hold a dictionary, got {type(state)}")
        return state

    def readable(self) -> Iterator[tuple[CheckpointFile, dict[str, Any], dict[str, Any] | None]]:
        """Checkpoints that are whole, the newest first: file, state and the state of its base.

        The user is told of damaged ones, which are put aside under another name.
        """
        for file in self.files():
            base = None if file.base is None else CheckpointFile(file.base)
            try:
                yield file, self.read(file), None if base is None else self.read(base)
            except DamagedError as error:
                warnings.warn(
                    f"{self.path / file.name}, or the file that it goes on from, {error}; the "
                    "checkpoint before it is used",
                    stacklevel=2,
                )
                with suppress(OSError):
                    path = self.path / file.name
                    path.replace(path.with_suffix(".damaged"))

    def _prune(self) -> None:
        files = self.files()
        kept = files[: self.keep]
        needed = {file.base for file in kept}
        with suppress(OSError):
            for file in files[self.keep :]:
                if file.number not in needed:
                    (self.path / file.name).unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make sure that the new name survives a loss of power, where the system can."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _in_words(path: Path, error: OSError) -> OSError:
    return OSError(
        f"no checkpoint could be written to {path}: {error.strerror or error}; what was there stays"
    )
