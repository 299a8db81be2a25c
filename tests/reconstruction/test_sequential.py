"""Refinement in chunks of images: the same networks as in one piece, in bounded memory, whatever forward code does."""

from __future__ import annotations

import gc
import importlib
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.reconstruction.fit import fit_layer
from deap_prune.reconstruction.passage import Passage
from deap_prune.reconstruction.refine import Refiner
from deap_prune.reconstruction.sampling import Sample, images_for, split
from deap_prune.reconstruction.sequential import SequentialFit
from tests.helpers.networks import conv_bn

refine_module = importlib.import_module("deap_prune.reconstruction.refine")  # the package's name is the function


class Noting(nn.Module):
    """Keeps what it needs later in attributes, and grows its maps again; one norm reads two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.mix = conv_bn(3, 8), conv_bn(8, 12), conv_bn(20, 10, 1)
        self.join, self.expand, self.fc = nn.BatchNorm2d(20), conv_bn(10, 20, groups=10), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = F.relu(self.stem(x))
        x = F.interpolate(F.relu(self.down(F.max_pool2d(self.skip, 2))), scale_factor=2)
        x = F.relu(self.join(torch.cat([self.skip, x], dim=1)))
        return self.fc(F.relu6(self.expand(F.relu(self.mix(x)))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.b(F.relu(self.a(x))) + x).mean((2, 3)))


def made(kind: Any, images: int = 20) -> tuple[nn.Module, dp.PruningSpace, Tensor]:
    torch.manual_seed(0)
    model = kind().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(images, 3, 8, 8, dtype=torch.float64)
    return model, dp.trace(model, x), x


def refiner_of(model: nn.Module, space: dp.PruningSpace, x: Tensor, rows: int = 400) -> Refiner:
    return Refiner(model, space, (x, torch.zeros(len(x))), images=len(x), rows=rows)


def refined(refiner: Refiner, space: dp.PruningSpace, select: bool) -> tuple[dict[str, Tensor], dp.Masks]:
    masks = dp.Masks.random(space, keep=0.5, seed=1)
    network, kept = refiner.refine(masks, dp.slim(refiner._network, space, masks), select=select, prior=0)
    return network.state_dict(), kept


# ------------------------------------------------------------------ the same as in one piece
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("kind", [Noting, Residual])
@pytest.mark.parametrize("memory", [None, 0.0])
def test_chunks_give_the_network_of_one_piece(
    kind: Any, select: bool, memory: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without memory for waiting images, where all chunks but the first start anew for every layer."""
    model, space, x = made(kind)
    whole = refiner_of(model, space, x)
    monkeypatch.setattr(refine_module, "CHUNKS", 1e7)
    chunked = refiner_of(model, space, x)
    assert len(whole._plan.chunks) == 1 and len(chunked._plan.chunks) == 10
    if memory is not None:
        chunked._plan = replace(chunked._plan, memory=memory)
    one, masks = refined(whole, space, select)
    other, its_masks = refined(chunked, space, select)
    assert masks == its_masks
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-7, atol=1e-7)


def test_against_plain_code_in_one_piece() -> None:
    """A chain of layers, all images at once, every layer fitted before the next one runs."""
    torch.manual_seed(0)
    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 10, stride=2), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(160, 4)).double().eval()
    x = torch.randn(60, 3, 8, 8, dtype=torch.float64)
    space = dp.trace(model, x)
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    refiner = Refiner(model, space, (x, torch.zeros(60)), images=60, rows=700)
    found = refiner(masks, dp.slim(model, space, masks))
    plain, kept = dp.slim(model, space, masks), space.kept(masks)
    ours = theirs = refiner._plan.batch[0]
    with torch.no_grad():
        for number in (0, 3, 7):
            layer, norm = plain[number], plain[number + 1] if number < 7 else None
            target = model[number : number + 2](theirs) if norm is not None else model[number](theirs)
            picks = refiner._plan.targets[str(number)].sample.picks
            rows = target.movedim(1, -1).flatten(0, -2)[picks][
                :, torch.as_tensor(kept[refiner._aims[str(number)].outputs])
            ]
            patches = ours
            if number < 7:
                patches = F.unfold(ours, layer.kernel_size, padding=1, stride=layer.stride).movedim(1, -1).flatten(0, 1)
            floor = torch.zeros_like(rows) if number < 7 else None
            fit_layer(layer, norm, patches[picks].unsqueeze(0), rows, floor=floor)
            last = {0: 3, 3: 7, 7: 8}[number]
            ours, theirs = plain[number:last](ours), model[number:last](theirs)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------ memory
def feature_maps() -> dict[int, int]:
    """Bytes of the feature maps of chunks of two images that are alive, by address."""
    tensors = [t for t in gc.get_objects() if type(t) is Tensor and t.dim() == 4 and len(t) == 2]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_waiting_images_stay_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the feature maps that are alive whenever a layer is fitted."""
    model, space, x = made(Residual, images=24)
    monkeypatch.setattr(refine_module, "CHUNKS", 1e7)
    plan, everything = refiner_of(model, space, x, rows=800)._plan, dp.Masks({})
    room = 5 * 2 * plan.alive["a.0"]  # five chunks of two images
    peak: dict[float, int] = {}
    for memory in (room, float("inf")):
        fit = SequentialFit(
            dp.slim(model, space, everything), replace(plan, memory=memory), space.kept(everything), None
        )
        before, run = {*feature_maps(), plan.batch[0].untyped_storage().data_ptr()}, fit._target

        def target(name: str, parts: Any, memory: float = memory, before: Any = before, run: Any = run) -> Any:
            maps = {at: nbytes for at, nbytes in feature_maps().items() if at not in before}
            peak[memory] = max(peak.get(memory, 0), sum(maps.values()))
            return run(name, parts)

        monkeypatch.setattr(fit, "_target", target)
        fit.run()
    assert peak[room] <= room < peak[float("inf")]


# ------------------------------------------------------------------ passes that wait
def test_errors_of_the_network_come_out_and_no_thread_stays() -> None:
    model, space, x = made(Residual)
    refiner, before = refiner_of(model, space, x), threading.active_count()

    def fail(module: nn.Module, args: Any) -> None:
        raise ValueError("out of order")

    small = dp.slim(model, space, dp.Masks({}))
    small.get_submodule("b").register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="out of order"):
        refiner(dp.Masks({}), small)
    assert threading.active_count() == before


def test_a_pass_has_the_settings_of_its_caller() -> None:
    seen: list[Any] = []

    def function() -> None:
        seen.append((torch.zeros(1).device.type, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        passage.wait("here")
        seen.append("later")

    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        passage = Passage(function, torch.device("cpu"))
    passage.advance()
    assert passage.at == "here" and seen == [("meta", False, True)]
    passage.close()
    assert passage.finished and passage.at is None and len(seen) == 1


# ------------------------------------------------------------------ samples
def test_chunks_share_out_the_picks() -> None:
    sample = Sample.draw(images=50, per_image=36, rows=300, generator=torch.Generator().manual_seed(0))
    parts = [sample.of(images) + images.start * 36 for images in split(50, 7)]
    assert torch.equal(torch.cat(parts), sample.picks)
    assert all(bool(((p >= 36 * i.start) & (p < 36 * i.stop)).all()) for p, i in zip(parts, split(50, 7), strict=True))


def test_large_maps_need_few_images_and_single_positions_all() -> None:
    numbers = [images_for(8000, images=500, per_image=p) for p in (112 * 112, 14 * 14, 7 * 7, 1)]
    assert numbers == sorted(numbers) and numbers[0] == 250 and numbers[-1] == 500
    assert [len(r) for r in split(7, 2.0)] == [2, 2, 3] and split(3, 1.0) == [range(3)]
