"""Files are whole or not there, whatever goes wrong while they are written."""

import errno
import json
import os
from pathlib import Path

import pytest

from certtrain import storage
from certtrain.errors import StorageError
from certtrain.storage import append_line, truncate, write_atomic, write_json


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"first", b"second"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("existed", [True, False])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
    existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if existed:
        (tmp_path / "file").write_bytes(b"earlier")
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device"):
        write_atomic(tmp_path / "file", b"later")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"file": b"earlier"} if existed else {})


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"later")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_numbers_that_others_cannot_read(value: float, tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"loss": value})
    write_json(tmp_path / "file.json", {"loss": 0.1})
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"loss": 0.1}


def test_a_log_grows_by_lines_and_is_cut_back(tmp_path: Path):
    path = tmp_path / "log"
    for line in ("one", "zwölf"):
        append_line(path, line)
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"
    truncate(path, 4)
    assert path.read_bytes() == b"one\n"


def test_a_log_that_is_not_there_stays_away(tmp_path: Path):
    truncate(tmp_path / "log", 0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"in the way")
    for attempt in (lambda: append_line(tmp_path, "x"), lambda: append_line(tmp_path / "file" / "log", "x")):
        with pytest.raises(StorageError, match="cannot write"):
            attempt()
    with pytest.raises(StorageError, match="cannot write"):
        truncate(tmp_path, 0)
