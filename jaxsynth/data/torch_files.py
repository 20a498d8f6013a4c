"""PyTorch's file format without PyTorch: a zip with a pickle `data.pkl` and every tensor's storage in `data/KEY`.

A pickle is a program. Here it may build containers and arrays, nothing else: whatever class or function it names, but
for a handful, becomes an `Inert` that swallows what it is called with.
"""

import io
import os
import pickle
import pickletools
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from jaxsynth.data.formats import naming
from jaxsynth.errors import InputError

# Bytes of a storage, by the class that PyTorch names for it.
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
ROOT = "archive"  # of the entries of a file written here
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number as a pickle of its own


class Inert:
    """What stands for an object of any other class: takes arguments, state and items, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def _swallow(self, *args, **kwargs):
        return None

    __init__ = __setstate__ = __setitem__ = append = extend = add = _swallow


class _Ordered(dict):
    """For OrderedDict; a state dict has attributes beside its items, which nobody needs."""

    def __setstate__(self, state):
        return None


def read(path: str | os.PathLike):
    """What `torch.save` (PyTorch 1.6 or later) wrote, usually a dict.

    Nothing in the file is executed: objects other than plain values, containers and tensors come back as `Inert`.

    Returns:
      Nested dicts, lists, tuples and plain values; tensors and parameters as read-only NumPy arrays of their dtype,
      bfloat16 as float32.

    Raises:
      InputError: not such a file, one of PyTorch before 1.6, big-endian, damaged or truncated.
    """
    path = Path(path)
    with naming(path):
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: {_what_it_is(path)}")
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise InputError(f"{path}: a zip without data.pkl, expected a checkpoint that PyTorch saved")
            order = f"{roots[0]}byteorder"
            if order in names and archive.read(order).strip() != b"little":
                raise InputError(f"{path}: was saved on a big-endian machine: load and save it on another")
            with archive.open(f"{roots[0]}data.pkl") as file:
                content = file.read()
            for operation, argument, _ in pickletools.genops(content):
                if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(content):
                    raise InputError(f"{path}: damaged: data.pkl numbers its objects beyond their count")
            try:
                return _Reader(archive, roots[0], content).load()
            except MemoryError as error:
                raise InputError(f"{path}: holds more than fits in memory, or is damaged") from error


def write(path: str | os.PathLike, content: dict) -> None:
    """Writes a file that `torch.load(path, weights_only=True)` reads, whole or not at all (aside, then renamed).

    Args:
      content: nested dicts of arrays, str, int, float, bool and None. Arrays become tensors of their own dtype:
        float16, 32, 64, uint8, int8, 16, 32, 64 or bool.

    Raises:
      ValueError: an array of another dtype.
    """
    path = Path(path)
    arrays = []
    program = b"\x80\x02" + _program(content, arrays) + b"."
    entries = [("data.pkl", program), ("byteorder", b"little")]
    entries += [(f"data/{key}", array.tobytes()) for key, array in enumerate(arrays)]
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(aside, "w") as archive:
            for name, data in [*entries, ("version", b"3\n")]:
                archive.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), data)  # of no date: equal content, equal bytes
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class _Reader(pickle.Unpickler):
    """Builds what the pickle of an open archive describes."""

    def __init__(self, archive: zipfile.ZipFile, root: str, content: bytes):
        super().__init__(io.BytesIO(content))
        self._archive, self._root, self._storages = archive, root, {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module == "torch" and name in STORAGES:
            return name  # names it in the persistent id
        return type(name, (Inert,), {})

    def persistent_load(self, pid):
        """The storage ("storage", class, key, device, number of elements), read once."""
        what, kind, key, _, count = pid
        if what != "storage" or kind not in STORAGES:
            return Inert()
        if key not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            dtype = np.dtype(STORAGES[kind])
            if not 0 <= count * dtype.itemsize <= len(data):
                raise InputError(
                    f"{self._archive.filename}: damaged: storage {key} has {len(data)} bytes, "
                    f"{count} of {dtype.name} were announced"
                )
            values = np.frombuffer(data, dtype, count)
            if kind == "BFloat16Storage":  # the upper half of a float32
                values = (values.astype("<u4") << 16).view("<f4")
            self._storages[key] = values
        return self._storages[key]

    def _tensor(self, storage, offset, shape, strides, *_):
        if isinstance(storage, Inert):
            return Inert()
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
            raise InputError(
                f"{self._archive.filename}: damaged: a tensor {shape} with strides {strides} leaves its storage "
                f"of {storage.size} elements"
            )
        start = storage[min(offset, storage.size) :]
        strides = [step * storage.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(start, shape, strides, writeable=False)

    def _parameter(self, data, *_):
        return data


def _what_it_is(path: Path) -> str:
    """What a file that is no zip is instead."""
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
    if head == _LEGACY or tarfile.is_tarfile(path):
        return "was saved by PyTorch older than 1.6: load it and save it again with a newer one"
    if head.startswith(b"PK"):
        return "truncated: the end of the file is missing"
    return "not a PyTorch checkpoint: expected a zip file as torch.save writes it"


def _program(value, arrays: list) -> bytes:
    """The pickle operations (protocol 2) that put a value on the stack; its arrays are appended to `arrays`."""
    if isinstance(value, dict):
        items = b"".join(_plain(name) + _program(entry, arrays) for name, entry in value.items())
        return b"}(" + items + b"u"
    if not isinstance(value, np.ndarray):
        return _plain(value)
    array = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
    kinds = {np.dtype(dtype): kind for kind, dtype in STORAGES.items() if kind != "BFloat16Storage"}
    if array.dtype not in kinds:
        raise ValueError(f"arrays of {array.dtype} have no PyTorch storage here, expected one of {list(kinds)}")
    key, strides = str(len(arrays)), tuple(step // array.itemsize for step in array.strides)
    arrays.append(array)
    kind = f"ctorch\n{kinds[array.dtype]}\n".encode()
    storage = b"(" + _plain("storage") + kind + _plain(key) + _plain("cpu") + _plain(array.size) + b"tQ"
    no_hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + _plain(0) + _plain(array.shape) + _plain(strides) + _plain(False) + no_hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _plain(value) -> bytes:
    """Operations for a plain value: its own pickle without the first, PROTO, and the last, STOP."""
    return pickle.dumps(value, 2)[2:-1]
