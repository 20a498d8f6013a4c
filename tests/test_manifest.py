"""The manifest while files are made: complete at the end, true at any time, one line of progress per file."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """fill(make, num, worker=(1, 1)) in a folder of one text file per name, and what its manifests tell of files."""

    def planned(name):
        return {"key": name}

    def fill(make, num=6, worker=(1, 1), by=manifests.fill):
        manifest = manifests.open_manifest(tmp_path, "test", {"seed": 1})

        def there(name):
            return (tmp_path / f"{name}.txt").is_file()

        return by(tmp_path, manifest, [f"f{i}" for i in range(num)], there, make, planned=planned, worker=worker)

    def told(name=manifests.NAME):
        return json.loads((tmp_path / name).read_text())["files"]

    return tmp_path, fill, told


def write(folder, name):
    (folder / f"{name}.txt").write_text(name)
    return {"length": len(name)}


def test_files_told_of_by_many_threads(folder, capsys):
    out, fill, told = folder

    def make(todo, done):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: done(name, write(out, name)), reversed(todo)))

    assert fill(make, 200)
    assert told() == {f"f{i}": {"key": f"f{i}", "length": len(f"f{i}")} for i in range(200)}
    assert list(told()) == [f"f{i}" for i in range(200)]
    assert "200/200" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_is_finished_when_it_ends_early_is_not_made_again(folder, error, monkeypatch):
    out, fill, told = folder
    monkeypatch.setattr(manifests, "WRITE_S", 1e9)  # nothing is written between

    def make(todo, done):
        for name in todo[:2]:
            done(name, write(out, name))
            assert told()[name] == {"key": name}
        write(out, todo[2])  # there, but not told of
        raise error

    with pytest.raises(error):
        fill(make)
    assert [len(entry) for entry in told().values()] == [2, 2, 1, 1, 1, 1]
    made = []

    def rest(todo, done):
        made.extend(todo)
        for name in todo:
            done(name, write(out, name))

    assert fill(rest) and made == ["f2", "f3", "f4", "f5"]
    assert fill(rest) and len(made) == 4
    assert all(len(entry) == 2 for entry in told().values())
    assert sorted(file.name for file in out.iterdir()) == sorted([f"f{i}.txt" for i in range(6)] + [manifests.NAME])


def test_the_rest_of_the_work_may_be_left_to_another_thread(folder):
    out, fill, told = folder
    assert fill(lambda name: lambda: write(out, name), by=manifests.make_files)
    later = told()
    for file in out.iterdir():
        file.unlink()
    assert fill(lambda name: write(out, name), by=manifests.make_files)
    assert told() == later and later["f0"] == {"key": "f0", "length": 2}


def test_workers_tell_of_all_in_the_end(folder):
    out, fill, told = folder

    def make(name):
        return write(out, name)

    assert not fill(make, worker=(1, 3), by=manifests.make_files)
    assert not fill(make, worker=(3, 3), by=manifests.make_files)
    assert [len(entry) for entry in told("manifest-1-of-3.json").values()] == [2, 2]
    assert fill(make, worker=(2, 3), by=manifests.make_files)
    assert all(len(entry) == 2 for entry in told().values()) and len(told()) == 6


def test_a_setting_left_out_has_its_default(tmp_path):
    """Of a folder begun before there was the setting, and of one begun with another value of it."""

    def begin(folder, **settings):
        folder.mkdir(exist_ok=True)
        manifest = manifests.open_manifest(folder, "test", {"seed": 1, **settings}, {"shapes": "exact"})
        manifests.write_json(folder / manifests.NAME, manifest)
        return manifest["settings"]

    assert begin(tmp_path / "a") == begin(tmp_path / "a") == {"seed": 1}
    with pytest.raises(InputError, match="shapes exact, not rounded"):
        begin(tmp_path / "a", shapes="rounded")
    assert begin(tmp_path / "b", shapes="rounded") == begin(tmp_path / "b", shapes="rounded")
    with pytest.raises(InputError, match="shapes rounded, not exact"):
        begin(tmp_path / "b")
    assert begin(tmp_path / "a", shapes="exact") == {"seed": 1, "shapes": "exact"}  # as written by some earlier run


def test_worker_is_parsed():
    assert manifests.worker("2/4") == (2, 4)
    for text in ("0/4", "5/4", "2", "a/b", "1/2/3", "-1/2", "1/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="I/N"):
            manifests.worker(text)
