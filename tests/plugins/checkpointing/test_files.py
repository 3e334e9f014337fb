"""Files are whole or not there; damage is found; nothing in them is run."""

import errno
import hashlib
import io
import os
import pickle
import random
import zipfile

import pytest
import torch

from avalanche_hnet.plugins.checkpointing import files
from avalanche_hnet.plugins.checkpointing.files import CheckpointFolder

STATE = {"weights": torch.arange(300.0), "names": ["a", "b"], "number": 3}


def newest(folder):
    return next(iter(folder.readable()))[1]


def test_what_is_written_is_read(tmp_path):
    folder = CheckpointFolder(tmp_path / "some" / "where", keep=2)
    folder.write(STATE)
    state = newest(folder)
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {"names": ["a", "b"], "number": 3}


def test_the_last_few_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for number in range(6):
        folder.write({"number": number})
    assert [state["number"] for _, state, _ in folder.readable()] == [5, 4, 3]
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_go_on(tmp_path):
    CheckpointFolder(tmp_path, keep=2).write({"number": 0})
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.write({"number": 1})
    assert [state["number"] for _, state, _ in folder.readable()] == [1, 0]


def test_truncations_and_flips(tmp_path):
    """At 200 random places: found each time, and the one before is used."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.write({**STATE, "number": 1})
    path = tmp_path / folder.write(STATE).name
    whole = path.read_bytes()
    draw = random.Random(0)
    for case in range(200):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        if case % 2:
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"{path.name}.*the checkpoint before it is used"):
            assert newest(folder)["number"] == 1
        assert not path.exists()
        path.with_suffix(".damaged").unlink()
    path.write_bytes(whole)
    assert newest(folder)["number"] == 3


def test_a_damaged_file_does_not_push_out_whole_ones(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for number in range(2):
        file = folder.write({"number": number})
    (tmp_path / file.name).write_bytes(b"")
    with pytest.warns(UserWarning, match="does not begin as a checkpoint"):
        assert newest(folder)["number"] == 0
    again = CheckpointFolder(tmp_path, keep=2)
    again.write({"number": 2})
    assert [state["number"] for _, state, _ in again.readable()] == [2, 0]


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_checkpoint(payload):
    digest = hashlib.sha256(payload).hexdigest().encode()
    return files._MAGIC + digest + b"\n" + payload


@pytest.mark.parametrize("how", ["torch", "pickle", "torch of old", "in the zip"])
def test_a_pickle_bomb_does_not_run(tmp_path, how):
    trace = tmp_path / "exploded"
    folder = CheckpointFolder(tmp_path / "run", keep=2)
    buffer = io.BytesIO()
    if how == "pickle":
        buffer.write(pickle.dumps(Bomb(trace)))
    elif how == "in the zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state": Bomb(trace)}))
            archive.writestr("archive/version", "3")
    else:
        zipped = how == "torch"
        torch.save({"state": Bomb(trace)}, buffer, _use_new_zipfile_serialization=zipped)
    (tmp_path / "run" / "checkpoint-00000000.pt").write_bytes(as_checkpoint(buffer.getvalue()))
    with pytest.raises(ValueError, match="something else than tensors and plain values"):
        newest(folder)
    assert not trace.exists()
    (tmp_path / "run" / "checkpoint-00000000.pt").write_bytes(buffer.getvalue())
    with pytest.warns(UserWarning, match="does not begin as a checkpoint"):
        assert list(folder.readable()) == []
    assert not trace.exists()


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_gives_one_sentence_and_what_was_there_stays(tmp_path, monkeypatch, place):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.write({"number": 0})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, place, full)
    monkeypatch.setattr(files.Path, "replace", full) if place == "replace" else None
    with pytest.raises(OSError, match=r"No space left on device; what was there stays$"):
        folder.write({"number": 1})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000000.pt"]
    assert newest(folder)["number"] == 0


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no checkpoint could be written to .*file"):
        CheckpointFolder(tmp_path / "file", keep=1)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.Path, "write_bytes", read_only)
    with pytest.raises(OSError, match="Read-only file system; what was there stays"):
        CheckpointFolder(tmp_path, keep=1)
