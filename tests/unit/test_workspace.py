"""Folders that outlive a run, and the locks on them."""

from __future__ import annotations

import os
from pathlib import Path

from ptq.delivery.checkpoints import Workspace


def test_one_run_at_a_time_goes_on_from_a_folder(tmp_path: Path) -> None:
    first, second = Workspace.at(tmp_path / "w"), Workspace.at(tmp_path / "w")
    assert (first.private, second.private) == (False, True)
    assert second.folder != first.folder
    first.lock.release()
    third = Workspace.at(tmp_path / "w")
    assert not third.private
    for each in (second, third):
        each.remove()
        assert not each.folder.exists()


def test_a_lock_is_given_up_once(tmp_path: Path) -> None:
    """A second time its number may be that of another file, which would be closed."""
    workspace = Workspace.at(tmp_path / "w")
    workspace.remove()
    handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    workspace.remove()
    workspace.lock.release()
    for handle in handles:
        os.fstat(handle)
        os.close(handle)
