"""Real files on disk: every format, every kind of bad input, patches against np.pad."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile

from jaxsynth.data import formats, volumes, writing
from jaxsynth.errors import InputError


@pytest.fixture
def stack():
    return np.random.default_rng(0).integers(0, 4000, (5, 40, 33)).astype(np.uint16)


def refused(call, *words):
    """The one line of the InputError that `call` raises; it holds all `words`."""
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert str(word) in line, f"{word!r} not in {line!r}"
    return line


# ---- finding ----


def test_find_files_takes_folder_glob_file_and_list(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.TIF", "a.png", "c.h5", "notes.txt", ".hidden.tif", ".b.tif.1.tmp", "deep/d.tiff"):
        (tmp_path / name).write_bytes(b"x")
    a, b, c, d = (tmp_path / name for name in ("a.png", "b.TIF", "c.h5", "deep/d.tiff"))
    assert volumes.find_files(tmp_path) == [a, b, c]
    assert volumes.find_files(str(tmp_path / "**/*")) == [a, b, c, d]
    assert volumes.find_files(b) == [b]
    assert volumes.find_files([d, str(tmp_path), a]) == [a, b, c, d]


def test_find_files_takes_a_file_whose_name_looks_like_a_glob(tmp_path):
    file = tmp_path / "cell[1].tif"
    file.write_bytes(b"x")
    assert volumes.find_files(file) == [file]


def test_find_files_names_what_was_not_found(tmp_path):
    refused(lambda: volumes.find_files(tmp_path), tmp_path, ".tif", ".png", ".hdf5")
    refused(lambda: volumes.find_files(tmp_path / "no"), tmp_path / "no", "no such")
    refused(lambda: volumes.find_files(str(tmp_path / "*.tif")), "*.tif", "no image files")
    refused(lambda: volumes.find_files([]), "data.path")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(lambda: volumes.find_files(tmp_path / "a.jpg"), "a.jpg", "not an image file")


# ---- reading ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
        {"compression": "zstd", "tile": (16, 16)},
        {"bigtiff": True},
        {"bigtiff": True, "compression": "lzw", "byteorder": ">"},
        {"byteorder": ">"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"metadata": None},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_of_every_kind_comes_back(tmp_path, stack, options, dtype):
    file = tmp_path / "a.tif"
    data = stack.astype(dtype)
    if "predictor" in options and dtype == "float32":
        options = options | {"predictor": 3}
    tifffile.imwrite(file, data, photometric="minisblack", **options)
    read = volumes.read(file)
    np.testing.assert_array_equal(read, data)
    assert read.dtype == np.dtype(dtype) and read.dtype.isnative


def test_pages_without_metadata_are_z(tmp_path, stack):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in stack:
            file.write(plane, metadata=None)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)


@pytest.mark.parametrize("axes, kind", [("CZYX", "ome"), ("ZCYX", "imagej"), ("ZCYX", "ome")])
def test_one_channel_of_several(tmp_path, stack, axes, kind):
    both = np.stack([stack, stack + 7])
    file = tmp_path / "a.tif"
    data = both if axes == "CZYX" else np.moveaxis(both, 0, 1)
    tifffile.imwrite(file, data, metadata={"axes": axes}, photometric="minisblack", **{kind: True})
    for channel in (0, 1):
        np.testing.assert_array_equal(volumes.read(file, channel=channel), both[channel])
    refused(lambda: volumes.read(file), file, "2 channels", "data.channel")
    refused(lambda: volumes.read(file, channel=2), file, "data.channel is 2")


def test_z_slices_labelled_as_channels_get_a_hint(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True)
    refused(lambda: volumes.read(tmp_path / "a.tif"), "a.tif", "5 channels", "z slices")


def test_singleton_axes_are_dropped(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack[None, :, None], metadata={"axes": "TZCYX"}, imagej=True)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif", channel=0), stack)
    tifffile.imwrite(tmp_path / "b.tif", stack[:1], metadata={"axes": "ZYX"}, imagej=True)
    np.testing.assert_array_equal(volumes.read(tmp_path / "b.tif"), stack[0])


def test_time_is_refused_except_as_the_only_axis_of_an_imagej_stack(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "TYX"}, imagej=True)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)
    tifffile.imwrite(tmp_path / "b.tif", stack, metadata={"axes": "TYX"}, ome=True)
    refused(lambda: volumes.read(tmp_path / "b.tif"), "b.tif", "time series", "5 frames")
    tifffile.imwrite(tmp_path / "c.tif", np.stack([stack, stack]), metadata={"axes": "TZYX"}, imagej=True)
    refused(lambda: volumes.read(tmp_path / "c.tif"), "c.tif", "time series", "TZYX")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(tmp_path, stack, dtype):
    file = tmp_path / "a.png"
    plane = stack[0].astype(dtype)
    file.write_bytes(imagecodecs.png_encode(plane))
    np.testing.assert_array_equal(volumes.read(file), plane)
    assert volumes.read(file).dtype == dtype
    colour = np.moveaxis(stack[:4], 0, -1).astype(dtype)
    for samples in (3, 4):
        file.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(colour[..., :samples])))
        refused(lambda: volumes.read(file), file, "RGB", "data.channel")
        np.testing.assert_array_equal(volumes.read(file, channel=2), colour[..., 2])


def test_rgb_tiff(tmp_path, stack):
    colour = np.ascontiguousarray(np.moveaxis(stack[:3], 0, -1)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    refused(lambda: volumes.read(tmp_path / "a.tif"), "a.tif", "RGB", "3 channels", "data.channel")
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif", channel=1), colour[..., 1])


def test_hdf5(tmp_path, stack):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/image"] = stack
        file["other"] = np.stack([stack, stack + 1]).astype(">u2")
        file["other"].attrs["element_size_um"] = [2.0, 0.5, 0.5]
        file["line"] = np.arange(4)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.h5"), stack)
    read = volumes.read(tmp_path / "a.h5", dataset="other", channel=1)
    np.testing.assert_array_equal(read, stack + 1)
    assert read.dtype.isnative
    assert volumes.spacing_um(tmp_path / "a.h5") is None
    assert volumes.spacing_um(tmp_path / "a.h5", dataset="other") == (2.0, 0.5, 0.5)
    refused(lambda: volumes.read(tmp_path / "a.h5", dataset="none"), "a.h5", "none", "data/image", "other")
    refused(lambda: volumes.read(tmp_path / "a.h5", dataset="other"), "a.h5", "2 channels")
    refused(lambda: volumes.read(tmp_path / "a.h5", dataset="line"), "a.h5", "(4,)")


def test_dtypes_that_are_no_images(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack.astype(np.uint32))
    refused(lambda: volumes.read(tmp_path / "a.tif"), "a.tif", "uint32", "uint16")


# ---- labels ----


def test_labels(tmp_path):
    labels = np.array([[0, 1, 70000], [2, 2, 0]])
    for name, dtype in (("a", np.uint32), ("b", np.float32), ("c", np.int32)):
        tifffile.imwrite(tmp_path / f"{name}.tif", labels.astype(dtype))
        read = volumes.read_labels(tmp_path / f"{name}.tif")
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, labels)
    tifffile.imwrite(tmp_path / "bool.tif", labels > 0)
    np.testing.assert_array_equal(volumes.read_labels(tmp_path / "bool.tif"), labels > 0)
    for bad, word in ((labels - 1, "-1"), (labels + 0.5, "fractions"), (labels * np.nan, "NaN")):
        dtype = np.int32 if bad.dtype.kind == "i" else np.float32
        tifffile.imwrite(tmp_path / "bad.tif", bad.astype(dtype))
        refused(lambda: volumes.read_labels(tmp_path / "bad.tif"), "bad.tif", word)


# ---- voxel size ----


@pytest.mark.parametrize("unit, um", [("um", 1), ("micron", 1), ("nm", 1e-3), ("mm", 1e3), ("\\u00B5m", 1)])
def test_spacing_of_imagej_files(tmp_path, stack, unit, um):
    tags = {"imagej": True, "resolution": (4.0, 5.0)}
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "ZYX", "unit": unit, "spacing": 1.75}, **tags)
    np.testing.assert_allclose(volumes.spacing_um(tmp_path / "a.tif"), np.array([1.75, 0.2, 0.25]) * um, rtol=1e-6)
    tifffile.imwrite(tmp_path / "b.tif", stack[0], metadata={"axes": "YX", "unit": unit}, **tags)
    np.testing.assert_allclose(volumes.spacing_um(tmp_path / "b.tif"), np.array([0.2, 0.25]) * um, rtol=1e-6)


def test_spacing_of_imagej_files_with_a_bare_micro_sign(tmp_path, stack):
    """Old ImageJ wrote the sign as one Latin-1 byte."""
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, stack[0], imagej=True, resolution=(4, 4), metadata={"axes": "YX", "unit": "?m"})
    file.write_bytes(file.read_bytes().replace(b"unit=?m", b"unit=\xb5m"))
    assert volumes.spacing_um(file) == (0.25, 0.25)


def test_imagej_leaves_out_a_spacing_of_one(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "unit": "um"})
    assert volumes.spacing_um(tmp_path / "a.tif") == (1.0, 0.5, 0.5)


@pytest.mark.parametrize("unit, um", [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("Å", 1e-4), (None, 1)])
def test_spacing_of_ome_files(tmp_path, stack, unit, um):
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 1.75}
    units = {f"{name}Unit": unit for name in sizes} if unit else {}
    tifffile.imwrite(tmp_path / "a.tif", stack, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    np.testing.assert_allclose(volumes.spacing_um(tmp_path / "a.tif"), np.array([1.75, 0.5, 0.25]) * um)


def test_spacing_is_none_where_the_file_does_not_say(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack)
    tifffile.imwrite(tmp_path / "b.tif", stack, resolution=(72, 72), resolutionunit="inch")
    tifffile.imwrite(tmp_path / "c.tif", stack, imagej=True, metadata={"axes": "ZYX", "unit": "pixel"})
    tifffile.imwrite(tmp_path / "d.tif", stack, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.25})
    (tmp_path / "e.png").write_bytes(imagecodecs.png_encode(stack[0]))
    assert [volumes.spacing_um(file) for file in volumes.find_files(tmp_path)] == [None] * 5


# ---- sets ----


def test_open_set(tmp_path, stack):
    for i in range(3):
        volumes.write(tmp_path / f"{i}.tif", stack[: 3 + i], spacing_um=(1.0, 0.25, 0.25))
    found = volumes.open_set(tmp_path, min_shape=(4, 50, 50))
    assert found.shapes == ((3, 40, 33), (4, 40, 33), (5, 40, 33))
    assert (found.dtype, found.ndim, found.spacing_um) == (np.uint16, 3, (1.0, 0.25, 0.25))
    assert found.num_voxels == 12 * 40 * 33
    np.testing.assert_array_equal(volumes.load(found, 1), stack[:4])
    last = volumes.subset(found, [2, 0])
    assert [v.shape[0] for v in volumes.each(last)] == [5, 3]
    assert last.paths == (found.paths[2], found.paths[0]) and last.dtype == found.dtype


@pytest.mark.parametrize(
    "data, word",
    [
        (np.array([[0, np.nan], [1, 2]], np.float32), "NaN"),
        (np.array([[0, np.inf], [1, 2]], np.float32), "infinite"),
        (np.full((9, 9), 7, np.uint8), "constant"),
    ],
)
def test_open_set_refuses_values(tmp_path, data, word):
    tifffile.imwrite(tmp_path / "a.tif", data)
    refused(lambda: volumes.open_set(tmp_path), tmp_path / "a.tif", word)


def test_open_set_refuses_mixtures(tmp_path, stack):
    a, b = tmp_path / "a.tif", tmp_path / "b.tif"
    tifffile.imwrite(a, stack)
    tifffile.imwrite(b, stack[0])
    refused(lambda: volumes.open_set(tmp_path), a, b, "2D", "3D")
    tifffile.imwrite(b, stack.astype(np.float32))
    refused(lambda: volumes.open_set(tmp_path), a, b, "uint16", "float32")


def test_open_set_refuses_small_images_only_without_padding(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack)
    volumes.open_set(tmp_path, min_shape=(8, 40, 33))
    volumes.open_set(tmp_path, min_shape=(5, 40, 33), allow_padding=False)
    refused(lambda: volumes.open_set(tmp_path, min_shape=(5, 41, 33), allow_padding=False), "a.tif", "smaller", 41)
    refused(lambda: volumes.open_set(tmp_path, min_shape=(41, 33)), "a.tif", "3D", "patch")


def test_open_set_settles_the_voxel_size(tmp_path, stack):
    volumes.write(tmp_path / "a.tif", stack, spacing_um=(1, 0.5, 0.5))
    volumes.write(tmp_path / "b.tif", stack)
    assert volumes.open_set(tmp_path).spacing_um == (1, 0.5, 0.5)
    volumes.write(tmp_path / "c.tif", stack, spacing_um=(2, 0.5, 0.5))
    refused(lambda: volumes.open_set(tmp_path), "a.tif", "c.tif", "voxel size")
    assert volumes.open_set(tmp_path, spacing=(3, 1, 1)).spacing_um == (3, 1, 1)
    refused(lambda: volumes.open_set(tmp_path, spacing=(1, 1)), "spacing", "3")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "lzw", "rowsperstrip": 8},
        {"imagej": True},
        {"ome": True},
        {"bigtiff": True, "compression": "zlib"},
    ],
)
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.95])
def test_truncated_tiff_is_refused(tmp_path, stack, options, fraction):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, stack, photometric="minisblack", **options)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * fraction)])
    refused(lambda: volumes.open_set(file), file, "truncated")


@pytest.mark.parametrize("num_pages", [1, 2, 4])
def test_tiff_cut_between_pages_is_no_shorter_stack(tmp_path, stack, num_pages):
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as out:
        for plane in stack:
            out.write(plane, compression="lzw", metadata=None)
    with tifffile.TiffFile(file) as tif:
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in tif.pages]
    content = file.read_bytes()
    file.write_bytes(content[: ends[num_pages - 1]])
    refused(lambda: volumes.read(file), file, "truncated")


def test_damaged_and_empty_files_are_refused(tmp_path, stack):
    png = imagecodecs.png_encode(stack[0])
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_dataset("data/image", data=stack, compression="gzip", chunks=(1, 40, 33))
    h5 = (tmp_path / "whole.h5").read_bytes()
    for name, content, word in (
        ("a.tif", b"", "empty"),
        ("b.tif", b"no image at all", "unreadable"),
        ("c.png", png[: len(png) // 2], "truncated"),
        ("d.png", b"", "empty"),
        ("e.h5", h5[: len(h5) // 2], "truncated"),
        ("f.h5", b"text", "unreadable"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: volumes.open_set(tmp_path / name), tmp_path / name, word)
    refused(lambda: volumes.read(tmp_path / "none.tif"), "none.tif", "no such file")


# ---- patches ----


def write_as(kind, file, data):
    """`data` as a file that is memory-mapped, sliced or decoded."""
    if kind == "hdf5":
        with h5py.File(file.with_suffix(".h5"), "w") as out:
            out["data/image"] = data
        return file.with_suffix(".h5")
    options = {"mapped": {}, "big-endian": {"byteorder": ">"}, "lzw": {"compression": "lzw"}}[kind]
    tifffile.imwrite(file, data, photometric="minisblack", **options)
    return file


@pytest.mark.parametrize("kind", ["mapped", "big-endian", "lzw", "hdf5"])
def test_patches_equal_the_mirrored_image(tmp_path, stack, kind):
    found = volumes.open_set(write_as(kind, tmp_path / "a.tif", stack))
    mirrored = np.pad(stack, 100, mode="reflect")
    rng = np.random.default_rng(1)
    for _ in range(30):
        start, shape = rng.integers(-20, 45, 3), rng.integers(1, 40, 3)
        patch = volumes.read_patch(found, 0, start, shape)
        window = tuple(slice(a, a + n) for a, n in zip(start + 100, shape, strict=True))
        np.testing.assert_array_equal(patch, mirrored[window])
        assert patch.dtype == np.uint16 and patch.dtype.isnative and patch.flags.writeable


def test_patches_of_one_channel(tmp_path, stack):
    both = np.stack([stack, stack + 9], axis=1)
    tifffile.imwrite(tmp_path / "a.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/image"] = np.moveaxis(both, 1, 0)
    for name in ("a.tif", "a.h5"):
        found = volumes.open_set(tmp_path / name, channel=1)
        np.testing.assert_array_equal(volumes.read_patch(found, 0, (1, 2, 3), (2, 20, 9)), stack[1:3, 2:22, 3:12] + 9)


def test_uncompressed_tiff_is_mapped_and_not_read(tmp_path, stack):
    """A patch shows what another writer changes in place: the pixels come from the file, not from memory."""
    file = write_as("mapped", tmp_path / "a.tif", stack)
    found = volumes.open_set(file)
    volumes.read_patch(found, 0, (0, 0, 0), (1, 1, 1))
    state = os.stat(file)
    shared = tifffile.memmap(file, mode="r+")
    shared[2, 3, 4] = 55555
    shared.flush()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert volumes.read_patch(found, 0, (2, 3, 4), (1, 1, 1)).item() == 55555


def test_a_file_written_anew_is_read_anew(tmp_path, stack):
    file = write_as("lzw", tmp_path / "a.tif", stack)
    found = volumes.open_set(file)
    volumes.read_patch(found, 0, (0, 0, 0), (1, 1, 1))
    write_as("lzw", file, stack[::-1] + 1)
    os.utime(file, ns=(1, 1))
    np.testing.assert_array_equal(volumes.read_patch(found, 0, (0, 0, 0), stack.shape), stack[::-1] + 1)


@pytest.mark.parametrize("kind", ["mapped", "lzw", "hdf5"])
def test_patches_from_many_threads_while_files_leave_the_cache(tmp_path, stack, kind, monkeypatch):
    monkeypatch.setattr(volumes, "CACHE_BYTES", 2 * stack.nbytes)
    files = [write_as(kind, tmp_path / f"{i}.tif", stack + i) for i in range(5)]
    found = volumes.open_set(files)
    barrier = threading.Barrier(8)

    def work(worker):
        barrier.wait(timeout=30)
        rng = np.random.default_rng(worker)
        for _ in range(40):
            i, y = rng.integers(5), rng.integers(20)
            np.testing.assert_array_equal(
                volumes.read_patch(found, i, (0, y, 0), (5, 20, 33)), stack[:, y : y + 20] + i
            )
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# ---- writing ----


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("spacing", [None, (1.75, 0.1625, 0.2)])
def test_written_images_come_back(tmp_path, stack, dtype, spacing):
    for data in (stack.astype(dtype), stack[0].astype(dtype)):
        size = spacing and spacing[-data.ndim :]
        volumes.write(tmp_path / "a.tif", data, spacing_um=size)
        read = volumes.read(tmp_path / "a.tif")
        np.testing.assert_array_equal(read, data)
        assert read.dtype == dtype
        assert volumes.spacing_um(tmp_path / "a.tif") == size
        with tifffile.TiffFile(tmp_path / "a.tif") as tif:
            assert tif.is_imagej and tif.pages.first.compression.name == "ADOBE_DEFLATE"


@pytest.mark.parametrize("top, dtype", [(3, "uint16"), (65535, "uint16"), (65536, "uint32"), (2**31 - 1, "uint32")])
def test_labels_are_never_cut(tmp_path, top, dtype):
    labels = np.zeros((3, 4, 5), np.int32)
    labels[1, 2, 3] = top
    volumes.write(tmp_path / "a.tif", labels, spacing_um=(2.0, 0.5, 0.25))
    assert tifffile.imread(tmp_path / "a.tif").dtype == dtype
    np.testing.assert_array_equal(volumes.read_labels(tmp_path / "a.tif"), labels)
    assert volumes.spacing_um(tmp_path / "a.tif") == (2.0, 0.5, 0.25)
    content = (tmp_path / "a.tif").read_bytes()
    volumes.write(tmp_path / "a.tif", labels, spacing_um=(2.0, 0.5, 0.25))
    assert (tmp_path / "a.tif").read_bytes() == content


def test_large_volumes_become_bigtiff(tmp_path, stack, monkeypatch):
    monkeypatch.setattr(writing, "BIG_BYTES", 1000)
    volumes.write(tmp_path / "a.tif", stack, spacing_um=(2.0, 0.5, 0.25))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff and tif.is_ome
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)
    assert volumes.spacing_um(tmp_path / "a.tif") == (2.0, 0.5, 0.25)


def test_write_narrows_floats_and_refuses_what_it_cannot_keep(tmp_path):
    data = np.linspace(0, 1, 12).reshape(3, 4)
    volumes.write(tmp_path / "a.tif", data)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), data.astype(np.float32))
    square = np.ones((2, 2), int)
    for bad in (-square, square * 2**32, square.astype(complex), np.zeros(3), np.zeros((1, 2, 3, 4))):
        with pytest.raises(ValueError, match=r"b\.tif"):
            volumes.write(tmp_path / "b.tif", bad)
    assert os.listdir(tmp_path) == ["a.tif"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, stack, monkeypatch):
    volumes.write(tmp_path / "a.tif", stack)

    def full_disk(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        volumes.write(tmp_path / "a.tif", stack + 1)
    assert os.listdir(tmp_path) == ["a.tif"]
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)


# ---- real data ----


@pytest.mark.parametrize(
    "name, count, ndim, dtype",
    [
        ("gowt1", 48, 2, "uint8"),
        ("hela", 22, 2, "uint16"),
        ("dsb2018", 334, 2, "uint8"),
        ("embryo3d", 22, 3, "uint16"),
    ],
)
def test_real_sets_open(real_data, name, count, ndim, dtype):
    found = volumes.open_set(real_data / name / "images")
    assert (len(found.paths), found.ndim, found.dtype) == (count, ndim, dtype)
    labels = volumes.read_labels(
        next(f for f in volumes.find_files(real_data / name / "masks") if f.stem == found.paths[-1].stem)
    )
    assert labels.shape == found.shapes[-1] and labels.max() > 0
    whole = volumes.load(found, -1)
    start = [n // 3 for n in whole.shape]
    patch = volumes.read_patch(found, -1, start, [16] * ndim)
    np.testing.assert_array_equal(patch, whole[tuple(slice(a, a + 16) for a in start)])


# ---- mapped ----


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint32"])
@pytest.mark.parametrize(("shape", "size"), [((5, 40, 33), (2.0, 0.5, 0.25)), ((40, 33), (0.5, 0.25))])
def test_a_mapped_file_is_filled_in_pieces(tmp_path, dtype, shape, size):
    path = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    with writing.mapped(path, shape, dtype, spacing_um=size) as volume:
        assert volume.shape == shape and not volume.any()
        assert not path.exists()
        volume[3:] = data[3:]
        volume[:3] = data[:3]
    assert os.listdir(tmp_path) == ["a.tif"]
    found = tifffile.imread(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, data)
    assert volumes.spacing_um(path) == size
    if dtype != "uint32":
        np.testing.assert_array_equal(volumes.read(path), data)


def test_a_large_mapped_file_is_a_bigtiff_that_patches_are_read_from(tmp_path, stack, monkeypatch):
    monkeypatch.setattr(writing, "BIG_BYTES", 1000)
    with writing.mapped(tmp_path / "a.tif", stack.shape, stack.dtype, spacing_um=(2.0, 0.5, 0.25)) as volume:
        volume[:] = stack
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff and tif.is_ome
    patch = volumes.read_patch(volumes.open_set(tmp_path), 0, (1, 2, 3), (2, 8, 8))
    np.testing.assert_array_equal(patch, stack[1:3, 2:10, 3:11])
    assert volumes.spacing_um(tmp_path / "a.tif") == (2.0, 0.5, 0.25)


def test_an_interrupted_mapped_file_leaves_the_old_one_and_nothing_else(tmp_path, stack):
    volumes.write(tmp_path / "a.tif", stack)
    with pytest.raises(KeyboardInterrupt), writing.mapped(tmp_path / "a.tif", stack.shape, stack.dtype) as volume:
        volume[:2] = 7
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.tif"]
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.tif"), stack)


def test_a_mapped_file_is_refused_before_anything_is_written(tmp_path):
    for shape, dtype in (((3, 4), "float64"), ((3, 4), "int64"), ((4,), "uint8"), ((1, 2, 3, 4), "uint8")):
        with pytest.raises(ValueError, match=r"b\.tif"), writing.mapped(tmp_path / "b.tif", shape, dtype):
            pass
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_in_one_line(tmp_path):
    expected = r"b\.tif: cannot make a file of 1e\+06 GB \("
    with pytest.raises(InputError, match=expected), writing.mapped(tmp_path / "b.tif", (10**6, 10**6, 10**3), "uint8"):
        pass
    with open(tmp_path / "a", "w+b") as file, pytest.raises(InputError, match=r"a: cannot make a file of 1e\+06 GB \("):
        with writing.room(file.name, 10**15):
            writing.reserve(file.fileno(), 10**15)
    os.remove(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_labels_in_float_are_checked_slab_by_slab(tmp_path, monkeypatch):
    """Mapped, whatever is wrong in any slab is found, and no slab but the last is small."""
    monkeypatch.setattr(formats, "SLAB_VOXELS", 10)
    labels = np.zeros((7, 5), np.float32)
    sizes = [len(slab) for slab in formats.slabs(labels)]
    assert sizes == [2, 2, 2, 1] and all(slab.base is labels for slab in formats.slabs(labels))
    for wrong in (None, 0.5, np.nan, np.inf):
        for row in (0, 6):
            labels[:] = 3
            labels[row, 4] = 7 if wrong is None else wrong
            tifffile.imwrite(tmp_path / "a.tif", labels)
            if wrong is None:
                found = formats.read_labels(tmp_path / "a.tif", mapped=True)
                assert isinstance(found, np.memmap)
                np.testing.assert_array_equal(found, labels)
                continue
            with pytest.raises(InputError, match="whole numbers, got fractions or NaN"):
                formats.read_labels(tmp_path / "a.tif", mapped=True)
