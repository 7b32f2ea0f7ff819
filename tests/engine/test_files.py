"""Files that are whole or not there."""

from __future__ import annotations

import errno
import resource

import pytest

from snnkernels.core.files import check_folder, write_whole


def test_a_file_is_written_as_any_other(tmp_path):
    path = tmp_path / "made" / "file.json"
    write_whole(path, b"new")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == plain.stat().st_mode  # others may read it
    write_whole(path, memoryview(b"newer"))
    assert [p.read_bytes() for p in path.parent.iterdir()] == [b"newer"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=str(path)) as told:
            write_whole(path, bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.errno == errno.EFBIG
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for call in (check_folder, lambda path: write_whole(path / "x", b"")):
        with pytest.raises(NotADirectoryError, match="file/c"):
            call(tmp_path / "file" / "c")
