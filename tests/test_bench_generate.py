"""The benchmark of generation: that it makes what it says, and its numbers agree."""

import pytest

from jaxsynth import bench_generate


def test_a_row_of_small_images(capsys, tmp_path):
    """Three on eight devices are one batch, filled up; the trace holds a run of its own."""
    row = bench_generate.generate((24, 40), "nuclei", 3, features=2, evaluations=2, rounds=1, profile=tmp_path)
    assert (row["shape"], row["evaluations"]) == ((24, 40), 2)
    assert row["volumes_per_hour"] == pytest.approx(3600 / row["median_s"])
    assert 0 < row["median_s"] < row["compile_s"] and row["serial_s"] > 0
    assert "3 of recipe nuclei, 8 at once over 8 devices" in row["note"]
    assert capsys.readouterr().out == ""  # which is for rows
    assert list(tmp_path.rglob("*.xplane.pb"))
