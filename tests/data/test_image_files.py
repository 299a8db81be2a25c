"""Image files of all kinds: decoded faithfully, or refused with the file's name."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deap_prune.data import load_data
from deap_prune.data.image_files import read_image
from deap_prune.errors import DataError

GRADIENT = np.arange(400).reshape(20, 20) * 160
RED = Image.new("RGB", (20, 20), (250, 0, 0))


def saved(image: Image.Image, path: Path, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def pixels(path: str) -> np.ndarray[Any, Any]:
    return np.asarray(read_image(path)).astype(int)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_range(suffix: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT.astype(np.uint16)), tmp_path / f"a.{suffix}")
    assert np.abs(pixels(path)[..., 0] - GRADIENT / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_unknown_range_are_refused(dtype: type, tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT.astype(dtype)), tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"the image '.*a.tif' holds .* numbers, of no known range; convert it to 8"):
        read_image(path)


def test_modes_become_rgb(tmp_path: Path) -> None:
    palette = saved(RED.quantize(4), tmp_path / "p.png", transparency=0)
    cmyk = saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), tmp_path / "c.jpg")
    for path in (palette, cmyk, saved(RED.convert("RGBA"), tmp_path / "a.png")):
        assert np.abs(pixels(path)[10, 10] - (250, 0, 0)).max() < 12
    for mode in ("1", "L", "LA", "YCbCr"):
        image = Image.new(mode, (20, 20))
        assert pixels(saved(image, tmp_path / f"{mode}.{'jpg' if mode == 'YCbCr' else 'png'}")).shape == (20, 20, 3)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20))
    exif = wide.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert pixels(saved(wide, tmp_path / "a.jpg", exif=exif)).shape == (40, 20, 3)


def png_of(width: int, height: int) -> bytes:
    """A small file whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def broken(name: str, path: Path) -> None:
    RED.save(path)
    data = path.read_bytes()
    contents = {
        "text": b"no image",
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flipped": data[:50] + bytes(255 - b for b in data[50:60]) + data[60:],
        "bomb": png_of(15000, 12000),
        "larger bomb": png_of(60000, 60000),
        "largest bomb": png_of(2**31 - 1, 2**31 - 1),
    }
    if name in contents:
        path.write_bytes(contents[name])
        return
    path.unlink()
    actions: dict[str, Callable[[], None]] = {
        "pipe": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    actions[name]()


BROKEN = ("text", "empty", "cut", "flipped", "bomb", "larger bomb", "largest bomb")
BROKEN += ("pipe", "link to nothing", "folder", "device")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    broken(name, tmp_path / "a.png")
    with pytest.raises(DataError, match=r"the image '.*a.png'"):
        read_image(str(tmp_path / "a.png"))


def folder(root: Path, classes: str) -> str:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (20, 16), (40 * number, 10 * k, 0)).save(root / name / f"{k}.png")
    return str(root)


COMMON: dict[str, Any] = {"format": "image_folder", "mean": 0.0, "std": 1.0, "calibration": 3, "validation": 2}


def test_a_test_folder_that_lacks_classes_follows_the_names(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "train", "abc"), folder(tmp_path / "test", "abc")
    shutil.rmtree(tmp_path / "test/b")
    data = load_data(train=train, test=test, size=8, **COMMON)
    assert data.test is not None and data.test[1].tolist() == [0, 0, 0, 2, 2, 2] and data.num_classes == 3
    shutil.rmtree(tmp_path / "train/c")
    with pytest.raises(DataError, match=r"has classes that '.*train' lacks \(\['c'\]\)"):
        load_data(train=train, test=test, size=8, **COMMON)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": -5},
        {"size": 10**6},
        {"size": True},
        {"size": 8, "resize": 0},
        {"size": 8, "resize": 8.5},
        {"size": 8, "mean": float("nan")},
        {"size": 8, "std": float("inf")},
        {"size": 8, "std": 0},
    ],
)
def test_bad_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give"):
        load_data(train=folder(tmp_path, "ab"), **{**COMMON, **options})


def test_a_long_thin_image(tmp_path: Path) -> None:
    train = folder(tmp_path, "ab")
    Image.new("RGB", (1, 50000)).save(tmp_path / "a/0.png")
    with pytest.raises(DataError, match=r"the image '.*0.png' of 1 x 50000 pixels is too long and thin"):
        _ = load_data(train=train, size=224, **COMMON).train


def test_archives_that_hold_something_else(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 4, 4, 3), np.uint8), np.arange(6)
    common = {"format": "npz", "train": str(tmp_path / "a.npz"), "mean": 0.0, "std": 1.0}
    for content in (
        {"images": images, "labels": np.array([10**9, *[0] * 5])},
        {"images": images[:, :0], "labels": labels},
        {"images": images, "labels": labels.astype(object)},
        {"images": images},
    ):
        np.savez(tmp_path / "a.npz", **content)
        with pytest.raises(DataError):
            load_data(calibration=2, validation=2, **common)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=labels)
    data = (tmp_path / "a.npz").read_bytes()
    for cut in (data[:-40], data[:60] + b"\xff" * 30 + data[90:], b""):
        (tmp_path / "a.npz").write_bytes(cut)
        with pytest.raises(DataError, match=r"is no .npz with the keys"):
            load_data(calibration=2, validation=2, **common)
