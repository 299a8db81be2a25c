"""Data formats, splits and augmentation, and their errors."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deap_prune.data import Splits, augment, load_data
from deap_prune.errors import DataError

PLAIN = {"mean": 0.0, "std": 1.0}


def write_npz(path: Path, count: int, *, gray: bool = False, labels: Any = None) -> str:
    """Images whose pixels all have the number of the image as their value, which identifies it."""
    shape = (count, 4, 6) if gray else (count, 4, 6, 3)
    images = np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1)), shape)
    np.savez(path, images=images, labels=np.arange(count) % 5 if labels is None else np.asarray(labels))
    return str(path)


def numbers(pair: tuple[torch.Tensor, torch.Tensor]) -> set[int]:
    return set((pair[0][:, 0, 0, 0] * 255).round().int().tolist())


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write_npz(tmp_path / "train.npz", 40)


def test_npz_splits(train: str, tmp_path: Path) -> None:
    test = write_npz(tmp_path / "test.npz", 7)
    data = load_data(format="npz", train=train, test=test, calibration=10, validation=12, **PLAIN)
    calibration, validation = numbers(data.calibration), numbers(data.validation)
    assert (len(calibration), len(validation), len(calibration | validation)) == (10, 12, 22)
    assert numbers(data.train) == set(range(40))
    assert data.test is not None
    assert data.test[0].shape == (7, 3, 4, 6)
    assert data.num_classes == 5
    for inputs, targets in (data.calibration, data.validation, data.train, data.test):
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long() % 5, targets)
    assert data.train is data.train


def test_normalisation_and_layout(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(6, dtype=np.int32))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    data = load_data(format="npz", train=str(tmp_path / "a.npz"), mean=mean, std=std, calibration=1, validation=1)
    expected = ((images / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.train[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_gray_images_without_a_channel(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "gray.npz", 9, gray=True)
    data = load_data(format="npz", train=path, calibration=2, validation=2, **PLAIN)
    assert data.train[0].shape == (9, 1, 4, 6)
    assert data.test is None


def test_exclude_from_train_and_seeds(train: str) -> None:
    def load(**options: Any) -> Splits:
        return load_data(format="npz", train=train, calibration=10, validation=12, **PLAIN, **options)

    data = load(exclude_from_train=True)
    assert numbers(data.train) == set(range(40)) - numbers(data.calibration) - numbers(data.validation)
    assert data.held_out and not load().held_out and numbers(load().train) == set(range(40))
    assert torch.equal(load(seed=3).validation[1], load(seed=3).validation[1])
    assert numbers(load(seed=3).validation) != numbers(load(seed=4).validation)


def test_splits_can_be_pickled(train: str) -> None:
    data = load_data(format="npz", train=train, calibration=2, validation=2, **PLAIN)
    assert torch.equal(pickle.loads(pickle.dumps(data)).train[0], data.train[0])


def test_digits() -> None:
    data = load_data(format="digits")
    assert data.test is not None
    sizes = [len(pair[1]) for pair in (data.calibration, data.validation, data.train, data.test)]
    assert sizes == [500, 360, 1077, 360]
    assert data.train[0].shape == (1077, 1, 8, 8)
    assert abs(float(data.train[0].mean())) < 0.02
    assert set(np.bincount(data.test[1])) <= {35, 36, 37}
    rows = {tuple(row) for row in data.train[0].flatten(1).tolist()}
    assert not rows & {tuple(row) for row in data.validation[0].flatten(1).tolist()}
    assert rows >= {tuple(row) for row in data.calibration[0].flatten(1).tolist()}
    other = load_data(format="digits", seed=1)
    assert other.test is not None
    assert torch.equal(other.test[0], data.test[0])


def make_folder(root: Path, classes: list[str], count: int = 4) -> str:
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 16), (40 * index, 10 * i, 0)).save(root / name / f"{i}.png")
    return str(root)


def test_image_folder(tmp_path: Path) -> None:
    train, test = make_folder(tmp_path / "train", ["a", "b"]), make_folder(tmp_path / "test", ["a", "b"], 1)
    data = load_data(format="image_folder", train=train, test=test, size=8, calibration=2, validation=3, **PLAIN)
    inputs, targets = data.train
    assert inputs.shape == (8, 3, 8, 8)
    assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long() // 40, targets)
    assert data.test is not None
    assert data.test[1].tolist() == [0, 1]


def test_image_folder_errors(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "train", ["a", "b"])
    common = {"format": "image_folder", "size": 8, "calibration": 2, "validation": 2, **PLAIN}
    with pytest.raises(DataError, match="nowhere"):
        load_data(train=str(tmp_path / "nowhere"), **common)
    with pytest.raises(DataError, match=r"has classes that '.*train' lacks \(\['c'\]\)"):
        load_data(train=train, test=make_folder(tmp_path / "test", ["a", "c"]), **common)
    data = load_data(train=train, **common)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read the image"):
        _ = data.train


def test_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision import datasets

    def fake(root: str, train: bool, download: bool) -> SimpleNamespace:
        count = 12 if train else 4
        return SimpleNamespace(data=np.zeros((count, 32, 32, 3), np.uint8), targets=list(range(count)))

    options = {"format": "torchvision", "root": str(tmp_path), "calibration": 3, "validation": 3, **PLAIN}
    with pytest.raises(DataError, match="download=True"):
        load_data(name="CIFAR10", **options)
    with pytest.raises(DataError, match="did you mean 'CIFAR100'"):
        load_data(name="CIFAR1000", **options)
    monkeypatch.setattr(datasets, "CIFAR10", fake)
    data = load_data(name="CIFAR10", **options)
    assert data.train[0].shape == (12, 3, 32, 32)
    assert data.num_classes == 12


def make_splits(count: int) -> Splits:
    pair = torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.int64)
    return Splits.from_tensors(calibration=pair, validation=pair, train=pair, num_classes=2)


def fails() -> Splits:
    raise TypeError("raised by the factory")


def test_factory() -> None:
    data = load_data(format="factory", factory=f"{__name__}:make_splits", kwargs={"count": 3})
    assert len(data.train[1]) == 3
    assert data.test is None
    for name in ("no.such.module:f", f"{__name__}:absent", "nonsense", ""):
        with pytest.raises(DataError, match="module:function"):
            load_data(format="factory", factory=name)
    with pytest.raises(DataError, match="returned dict"):
        load_data(format="factory", factory="builtins:dict")
    with pytest.raises(DataError, match=r"'os:getcwd' can't be called with kwargs=\{'x': 1\}"):
        load_data(format="factory", factory="os:getcwd", kwargs={"x": 1})
    with pytest.raises(TypeError, match="raised by the factory"):  # errors inside the factory are not replaced
        load_data(format="factory", factory=f"{__name__}:fails")


def test_unknown_formats_and_options(train: str) -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load_data(format="digit")
    with pytest.raises(DataError, match="did you mean 'train'"):
        load_data(format="npz", trian=train, **PLAIN)
    with pytest.raises(DataError, match="needs mean, std"):
        load_data(format="npz", train=train)


def test_options_of_the_wrong_type(train: str) -> None:
    with pytest.raises(DataError, match="validation is 'few'; give a whole number"):
        load_data(format="digits", validation="few")
    with pytest.raises(DataError, match=r"calibration is 2\.5; give a whole number"):
        load_data(format="digits", calibration=2.5)
    with pytest.raises(DataError, match=r"mean='grey', std=1\.0: .*; give a number for each channel"):
        load_data(format="npz", train=train, mean="grey", std=1.0)
    with pytest.raises(DataError, match="size is 'large'; give a whole number of pixels from 1 to"):
        load_data(format="image_folder", train="anywhere", size="large", **PLAIN)
    with pytest.raises(DataError, match="no image folder at '5'"):
        load_data(format="image_folder", train=5, **PLAIN)
    with pytest.raises(DataError, match="no file '5'"):
        load_data(format="npz", train=5, **PLAIN)
    with pytest.raises(DataError, match="num_classes is 'ten'; give a whole number"):
        load_data(format="npz", train=train, num_classes="ten", **PLAIN)


@pytest.mark.parametrize(("calibration", "validation"), [(30, 11), (0, 5), (5, 0), (41, 1)])
def test_too_many_images(train: str, calibration: int, validation: int) -> None:
    with pytest.raises(DataError, match=f"calibration={calibration} and validation={validation}.* of 40"):
        load_data(format="npz", train=train, calibration=calibration, validation=validation, **PLAIN)


def test_no_images_remain_for_training(train: str) -> None:
    with pytest.raises(DataError, match="all 40 training images"):
        load_data(format="npz", train=train, calibration=20, validation=20, exclude_from_train=True, **PLAIN)


def test_npz_errors(train: str, tmp_path: Path) -> None:
    def load(path: str | Path, **options: Any) -> Splits:
        return load_data(**{"format": "npz", "train": str(path), "calibration": 1, "validation": 1, **PLAIN, **options})

    with pytest.raises(DataError, match=r"no file .*absent\.npz"):
        load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"no file .*absent\.npz"):
        load(train, test=str(tmp_path / "absent.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz.* is no \.npz"):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "keys.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="keys images and labels"):
        load(tmp_path / "keys.npz")
    np.savez(tmp_path / "float.npz", images=np.zeros((3, 2, 2, 3)), labels=np.zeros(3, int))
    with pytest.raises(DataError, match="float64"):
        load(tmp_path / "float.npz")
    with pytest.raises(DataError, match=r"\(3,\) for 4 images"):
        load(write_npz(tmp_path / "short.npz", 4, labels=[0, 1, 2]))
    with pytest.raises(DataError, match="labels from -1"):
        load(write_npz(tmp_path / "negative.npz", 3, labels=[0, -1, 1]))
    with pytest.raises(DataError, match="from 0 to 4 with 3 classes"):
        load(train, num_classes=3)
    with pytest.raises(DataError, match="from 0 to 9 with 5 classes"):
        load(train, test=write_npz(tmp_path / "more.npz", 2, labels=[0, 9]))
    for wrong in ({"mean": [0.5, 0.5]}, {"std": 0.0}, {"std": [1.0, 1.0, -1.0]}):
        with pytest.raises(DataError, match="3 channels"):
            load(train, **wrong)


def test_augment_shifts_and_mirrors() -> None:
    inputs = torch.arange(1.0, 1 + 60 * 2 * 5 * 5).reshape(60, 2, 5, 5)
    outputs = augment(inputs, torch.Generator().manual_seed(0), padding=1)
    padded = torch.nn.functional.pad(inputs, [1] * 4)
    drawn = set()
    for i in range(60):
        windows = {(r, c, f): padded[i, :, r : r + 5, c : c + 5] for r in range(3) for c in range(3) for f in (0, 1)}
        matches = [key for key, w in windows.items() if torch.equal(w.flip(2) if key[2] else w, outputs[i])]
        assert len(matches) == 1
        drawn.add(matches[0])
    assert len(drawn) > 12
    assert torch.equal(augment(inputs, torch.Generator(), padding=0, flip=False), inputs)
    repeated = augment(inputs, torch.Generator().manual_seed(0), padding=1)
    assert torch.equal(repeated, outputs)


def test_splits_print_their_sizes() -> None:
    """Short, and without decoding images that nobody has asked for."""
    splits = load_data(format="digits", calibration=100, validation=100)
    text = repr(splits)
    assert text == str(splits) and len(text.splitlines()) == 5 and len(text) < 400
    assert "calibration: 100 images of 1 x 8 x 8, float32" in text and "train: decoded at first use" in text
    _ = splits.train, splits.test
    assert "decoded at first use" not in repr(splits)
    assert "test: none" in repr(dataclasses.replace(splits, load_test=None))
