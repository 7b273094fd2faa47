"""The disasters that take a second or two; `make chaos` has them all."""

import pytest
from chaos.full_disks import convert_onto_full_disk, segment_onto_full_disk


@pytest.mark.parametrize("disaster", [convert_onto_full_disk, segment_onto_full_disk], ids=lambda one: one.__name__)
@pytest.mark.parametrize("can_mount", [True, False])
def test_a_full_disk_loses_nothing_and_leaves_nothing_half_made(disaster, can_mount, tmp_path, monkeypatch):
    """With a small disk where one may be mounted, and with a limit on the size of files."""
    if not can_mount:
        monkeypatch.setattr("chaos.tools._mount", lambda options, folder: False)
    outcome = disaster(tmp_path / "here")
    assert outcome.cases == outcome.hits >= 5
    assert can_mount or outcome.how == "RLIMIT_FSIZE"
