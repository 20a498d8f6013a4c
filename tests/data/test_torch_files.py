"""PyTorch's file format: what comes back, and that whatever is wrong with a file is an InputError and runs no code."""

import os
import pickle
import random
import zipfile

import numpy as np
import pytest

from jaxsynth.data import torch_files
from jaxsynth.errors import InputError

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


def tensor(storage, offset, shape, strides):
    """The pickle operations of a tensor whose storage has the given ones."""
    plain = torch_files._plain
    arguments = storage + plain(offset) + plain(shape) + plain(strides) + plain(False) + b"N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def storage(kind, key, count):
    plain = torch_files._plain
    return b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cpu") + plain(count) + b"tQ"


def pack(path, program, storages=None, **entries):
    """A checkpoint whose data.pkl has the given operations."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02" + program + b".")
        for key, data in (storages or {}).items():
            archive.writestr(f"any/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(f"any/{name}", data)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "small.pt"
    torch_files.write(path, {"state_dict": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "epoch": 3})
    return path


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_what_is_written_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    content = {
        "state_dict": {name: (rng.random((3, 1, 5)) * 100).astype(name) for name in DTYPES},
        "strided": np.arange(12.0).reshape(3, 4).T[::2],
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "plain": {"step": 2**40, "name": "ü" * 300, "rate": 1e-3, "flag": True, "nothing": None, "": {}},
    }
    torch_files.write(tmp_path / "a.pt", content)
    same(torch_files.read(tmp_path / "a.pt"), content)
    torch_files.write(tmp_path / "b.pt", content)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="complex64"):
        torch_files.write(tmp_path / "a.pt", {"z": np.zeros(3, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_strides_offsets_and_shared_storages(tmp_path):
    data = np.arange(10, dtype="<f4")
    both = tensor(storage("FloatStorage", "0", 10), 1, (2, 3), (1, 3)) + b"\x94"  # MEMOIZE, which torch may use
    both += tensor(storage("FloatStorage", "0", 10), 9, (4,), (0,)) + b"\x86"
    read = torch_files.read(pack(tmp_path / "a.pt", both, {"0": data.tobytes()}))
    np.testing.assert_array_equal(read[0], [[1, 4, 7], [2, 5, 8]])
    np.testing.assert_array_equal(read[1], [9, 9, 9, 9])


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 3e38, 0.0078125], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    expected = (upper.astype(np.uint32) << 16).view(np.float32)
    path = pack(tmp_path / "a.pt", tensor(storage("BFloat16Storage", "x", 4), 0, (4,), (1,)), {"x": upper.tobytes()})
    np.testing.assert_array_equal(torch_files.read(path), expected)
    np.testing.assert_allclose(expected, values, rtol=2**-8)


def test_parameters_are_tensors(tmp_path):
    inner = tensor(storage("FloatStorage", "0", 1), 0, (), ())
    program = b"ctorch._utils\n_rebuild_parameter\n(" + inner + b"\x88}tR"
    value = torch_files.read(pack(tmp_path / "a.pt", program, {"0": np.float32(7).tobytes()}))
    assert value.shape == () and value == 7


class Runs:
    """Unpickled by Python, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Holds:
    """An object with state, items and entries, as a training leaves them in its checkpoints."""

    def __reduce__(self):
        return Holds, (1, 2), {"state": 3}, iter([4, 5]), iter([("six", 7)])


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_run(tmp_path, protocol):
    trap = tmp_path / "trap"
    content = {"before": 1, "bad": Runs(trap), "holds": Holds(), "kind": Runs, "after": [2]}
    program = pickle.dumps(content, protocol)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("any/data.pkl", program)
    read = torch_files.read(tmp_path / "a.pt")
    assert not trap.exists()
    assert read["before"] == 1 and read["after"] == [2]
    assert isinstance(read["bad"], torch_files.Inert) and isinstance(read["holds"], torch_files.Inert)
    pickle.loads(pickle.dumps(Runs(trap), protocol))
    assert trap.is_dir()  # so it was a trap


GLOBALS = ("builtins\neval", "os\nsystem", "torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict",
           "jaxsynth.data.torch_files\nread", "torch\nFloatStorage")  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS)
def test_nothing_can_be_changed_from_within_a_file(tmp_path, name):
    """State for the class or function itself, in both forms that a pickle can give it."""
    for state in ({"__new__": 1, "read": 2}, (None, {"read": 1, "__call__": 2})):
        program = f"c{name}\n".encode() + torch_files._plain(state) + b"b"
        path = pack(tmp_path / "a.pt", program)
        try:
            torch_files.read(path)
        except InputError:
            pass
    assert callable(torch_files.read) and not hasattr(torch_files.Inert, "read")
    assert not hasattr(torch_files._Reader, "read") and not hasattr({}, "read")


def error_of(path):
    with pytest.raises(InputError) as caught:
        torch_files.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_a_file_cut_anywhere_is_an_input_error(small, tmp_path):
    data = small.read_bytes()
    cut = tmp_path / "cut.pt"
    for size in range(0, len(data), 5):
        cut.write_bytes(data[:size])
        message = error_of(cut)
        assert "truncated" in message or "empty" in message or size < 2


def test_a_file_with_wrong_bytes_is_read_or_an_input_error(small, tmp_path):
    data, rng = small.read_bytes(), random.Random(0)
    for _ in range(300):
        wrong = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        (tmp_path / "wrong.pt").write_bytes(wrong)
        try:
            torch_files.read(tmp_path / "wrong.pt")
        except InputError:
            pass


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_pickle_with_wrong_bytes_is_read_or_an_input_error(small, tmp_path):
    """Without a checksum in the way."""
    with zipfile.ZipFile(small) as archive:
        program, data = archive.read("archive/data.pkl")[2:-1], archive.read("archive/data/0")
    rng, raised = random.Random(1), 0
    for _ in range(500):
        wrong = bytearray(program)
        for _ in range(rng.randint(1, 3)):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        try:
            torch_files.read(pack(tmp_path / "wrong.pt", bytes(wrong), {"0": data}))
        except InputError:
            raised += 1
    assert raised > 100


@pytest.mark.parametrize(
    ("program", "storages", "message"),
    [
        (tensor(storage("FloatStorage", "0", 4), 0, (4,), (1,)), {"0": bytes(12)}, "12 bytes, 4 of float32"),
        (tensor(storage("FloatStorage", "0", 4), 1, (4,), (1,)), {"0": bytes(16)}, "leaves its storage"),
        (tensor(storage("FloatStorage", "0", 4), 3, (2,), (-1,)), {"0": bytes(16)}, "leaves its storage"),
        (tensor(storage("FloatStorage", "0", 4), -1, (1,), (1,)), {"0": bytes(16)}, "leaves its storage"),
        (tensor(storage("FloatStorage", "0", -1), 0, (2,), (1,)), {"0": bytes(16)}, "damaged"),
        (tensor(storage("FloatStorage", "1", 4), 0, (4,), (1,)), {"0": bytes(16)}, "damaged"),
        (tensor(storage("FloatStorage", "0", 4), 0, (2, 2), (1,)), {"0": bytes(16)}, "damaged"),
        (tensor(b"N", 0, (4,), (1,)), {}, "damaged"),
        (b"r\xff\xff\xff\x7f", {}, "damaged"),
        (b"nonsense", {}, "damaged"),
        (b"", {}, "damaged"),
    ],
)
def test_damage_is_named(tmp_path, program, storages, message):
    assert message in error_of(pack(tmp_path / "a.pt", program, storages))


def test_tensors_of_unknown_storages_are_inert(tmp_path):
    path = pack(tmp_path / "a.pt", tensor(storage("QInt8Storage", "0", 4), 0, (4,), (1,)), {"0": bytes(4)})
    assert isinstance(torch_files.read(path), torch_files.Inert)


def test_other_files_are_named(tmp_path, small):
    path = tmp_path / "a.pt"
    assert "no such file" in error_of(path)
    path.write_bytes(b"GIF89a" * 20)
    assert "not a PyTorch checkpoint" in error_of(path)
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    assert "PyTorch older than 1.6" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert "without data.pkl" in error_of(path)
    assert "big-endian" in error_of(pack(path, b"}", byteorder=b"big"))
    assert torch_files.read(pack(path, b"}", byteorder=b"little")) == {}
