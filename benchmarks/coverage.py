r"""Which networks can be pruned, how much of each, do the laws hold, and what does Torch-Pruning do with them?

Question: for networks of torchvision, timm, segmentation-models-pytorch and transformers: which groups does tracing
accept, are pruned networks exact, how many FLOPs does a mask of half of every group leave, and what is refused, for
which reason? What is left after Torch-Pruning has removed half of every group?
Method: a fresh network (random weights) is traced with one image. Law 1: on a randomised float64 copy, the masked
and the slimmed network agree for random masks that keep between 30 and 70 % of every group. Law 2: the closed-form
flops and parameters equal fvcore's count and the parameters of the slimmed network, as whole numbers; it is not
compared where the cost depends on values. Torch-Pruning's MagnitudePruner prunes half, with the layers ignored whose
channels are outputs of the network. Packages that are not installed are skipped. Every network has a process of its
own with a limit on its CPU seconds.
Output: results/coverage.json, one entry a network (networks that have one are skipped), and the same as coverage.csv.

    python benchmarks/coverage.py                    # everything: hours on two cores
    python benchmarks/coverage.py resnet50 timm:dla34 smp:Unet
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import multiprocessing
import platform
import resource
import signal
import subprocess
import time
import warnings
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.structure.inputs import as_call
from deap_prune.structure.tracing.fvcore_count import count_flops
from deap_prune.structure.tracing.proof import Proof, difference

TRANSFORMERS = ("vit_", "swin_", "maxvit_")  # of torchvision
SIZES = {
    "inception_v3": 299,
    "alexnet": 80,
    "smp:PAN": 128,
    "timm:inception_v3": 107,
    "timm:inception_v4": 107,
    "timm:inception_resnet_v2": 107,
    "timm:efficientformer_l1": 224,
    "timm:haloregnetz_b": 224,
    **dict.fromkeys(("timm:bat_resnext26ts", "timm:halonet26t"), 256),
}  # else 64
LIMIT = 10  # CPU seconds for Torch-Pruning
PEER = "half, Torch-Pruning"  # kept from an earlier row of the same versions
PARTS = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "fasterrcnn_resnet50_fpn")
TIMM = """
    resnet26t seresnet50 res2net50_26w_4s dla34 hrnet_w18_small ghostnet_100 repvgg_a0 cspresnet50 nf_resnet50
    convnextv2_atto mobilenetv4_conv_small tf_efficientnet_lite0 regnety_004 densenet121 xception41 inception_v4
    ese_vovnet19b_dw fbnetc_100 mixnet_s resnest14d selecsls42b skresnet18 mobileone_s0 rexnet_100 tinynet_e
    efficientnet_es lcnet_050 hardcorenas_a res2net50_14w_8s res2net101_26w_4s res2net50d res2next50 mixnet_m
    tf_mixnet_s mixnet_l skresnet34 skresnext50_32x4d cspresnet50d cspresnet50w cspresnext50 cspdarknet53
    cs3darknet_s cs3darknet_m cs3darknet_focus_s cs3sedarknet_l cs3edgenet_x poolformer_s12 poolformerv2_s12
    levit_128s levit_128 levit_conv_128s fasternet_t0 fasternet_t1 fasternet_s mambaout_femto mambaout_kobe
    mambaout_tiny inception_next_atto inception_next_tiny convformer_s18 caformer_s18 resnet10t resnet14t resnet18d
    resnet50c resnetv2_18 resnetv2_50 resnetblur18 resnetaa34d resnetrs50 seresnet18 seresnext26d_32x4d seresnet33ts
    ecaresnet26t ecaresnetlight ecaresnext26t_32x4d gcresnet33ts gcresnext26ts resnext26ts legacy_seresnet18
    legacy_seresnext26_32x4d seresnextaa101d_32x8d bat_resnext26ts botnet26t_256 halonet26t lambda_resnet26t
    sebotnet33ts_256 haloregnetz_b eca_botnext26ts_256 nf_regnet_b0 nf_seresnet26 eca_nfnet_l0 nfnet_f0 dm_nfnet_f0
    resnest26d dpn48b dpn68 dla46_c dla60_res2net dla60x_c hrnet_w18_small_v2 vovnet39a ese_vovnet19b_slim
    selecsls42 gernet_s darknet17 darknet21 sedarknet21 cspnext_tiny tresnet_m xception41p pnasnet5large
    nasnetalarge inception_v3 inception_resnet_v2 regnetx_002 regnety_002 regnetz_005 regnetz_b16 rexnetr_100
    repvgg_b0 repvgg_d2se mobileone_s1 efficientnet_b0 efficientnet_b0_gn efficientnet_b0_g8_gn efficientnet_lite0
    efficientnetv2_rw_t gc_efficientnetv2_rw_t tf_efficientnetv2_b0 tf_efficientnet_b0 tf_efficientnet_es
    efficientnet_cc_b0_4e mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv3_rw
    mobilenetv4_conv_medium mobilenetv4_hybrid_medium mobilenet_edgetpu_v2_s mobilenet_edgetpu_100 mnasnet_050
    semnasnet_050 spnasnet_100 fbnetv3_b hardcorenas_c tinynet_a lcnetv2_small ghostnet_050 ghostnetv2_100
    ghostnetv3_050 repghostnet_050 hgnet_tiny hgnetv2_b0 densenetblur121d rdnet_tiny convnext_atto convnext_atto_ols
    convnext_atto_rms convnext_femto convnextv2_femto convmixer_768_32 starnet_s1 starnet_s2 shvit_s1 repvit_m0_9
    repvit_m1 lowformer_b0 iformer_t cpubone_b0_bfrobust edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    fastvit_t8 fastvit_s12 swiftformer_xs mobilevit_xxs mobilevitv2_050 efficientvit_b0 efficientvit_m0
    efficientvim_m1 nextvit_small visformer_tiny tiny_vit_5m_224 pvt_v2_b0 twins_svt_small coat_lite_tiny
    coatnet_nano_rw_224 maxvit_nano_rw_256 focalnet_tiny_srf davit_tiny xcit_nano_12_p16_224 csatv2 gmlp_ti16_224
    resmlp_12_224 mixer_s32_224 sequencer2d_s volo_d1_224 vitamin_small_224 gcvit_xxtiny mvitv2_tiny hiera_tiny_224
    nest_tiny pit_ti_224 crossvit_9_240 cait_xxs24_224 vit_tiny_patch16_224 deit_tiny_patch16_224
    swin_tiny_patch4_window7_224 test_resnet test_efficientnet test_byobnet test_convnext test_nfnet test_mambaout
    test_vit
""".split()  # noqa: SIM905 (hundreds of quoted names are harder to read)
SMP = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer".split()  # noqa: SIM905
SMP_ENCODERS = {"MAnet": "mobilenet_v2", "PAN": "mobilenet_v2", "UPerNet": "efficientnet-b0", "Segformer": "mit_b0"}
# Configurations of transformers' networks: class to the options that make it small.
HUGGING: dict[str, dict[str, Any]] = {
    "ResNet": {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "RegNet": {"embedding_size": 32, "hidden_sizes": [32, 64, 160, 384], "depths": [1, 2, 4, 1], "groups_width": 8},
    "ConvNext": {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
    "ConvNextV2": {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
    "MobileNetV1": {},
    "MobileNetV2": {},
    "EfficientNet": {"image_size": 64},
    "PoolFormer": {"depths": [2, 2, 2, 2]},
    "Segformer": {},
    "Levit": {"image_size": 64},
    "MobileViT": {"image_size": 64},
    "MobileViTV2": {"image_size": 64},
    "Bit": {"embedding_size": 64, "hidden_sizes": [128, 256, 512, 1024], "depths": [2, 2, 2, 2]},
    "Cvt": {},
    "Pvt": {"image_size": 64},
    "SwiftFormer": {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [24, 48, 96, 192]},
    "FocalNet": {"image_size": 64},
    "HGNetV2": {},
    "TextNet": {},
}


def networks() -> list[str]:
    """Names of all networks, by package; packages that are not installed are left out."""
    zoo = torchvision.models.list_models(module=torchvision.models)
    names = [*(name for name in zoo if not name.startswith(TRANSFORMERS)), *PARTS]
    for prefix, package, members in (
        ("timm", "timm", TIMM),
        ("smp", "segmentation_models_pytorch", SMP),
        ("transformers", "transformers", list(HUGGING)),
    ):
        names += [f"{prefix}:{name}" for name in members] if find_spec(package) else []
    return names


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A fresh network of that name, and one image for it."""
    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _made(*name.partition(":")[::2]) if ":" in name else _of_torchvision(name)
    return model.eval(), torch.randn(1, 3, size, size)


def _of_torchvision(name: str) -> nn.Module:
    if name.startswith("fasterrcnn"):  # what a detector runs on an image: backbone and feature pyramid
        return torchvision.models.get_model(name, weights=None, weights_backbone=None).backbone
    options = {"weights_backbone": None} if name in PARTS else {}
    return torchvision.models.get_model(name, weights=None, **options)


def _made(package: str, name: str) -> nn.Module:
    model: nn.Module
    if package == "timm":
        import timm

        try:
            model = timm.create_model(name, img_size=64)
        except TypeError:  # most networks take any size
            model = timm.create_model(name)
    elif package == "smp":
        import segmentation_models_pytorch as smp

        encoder = SMP_ENCODERS.get(name, "resnet18")
        model = getattr(smp, name)(encoder_name=encoder, encoder_weights=None, classes=4)
    else:
        import transformers

        config = getattr(transformers, f"{name}Config")(**HUGGING[name])
        model = getattr(transformers, f"{name}ForImageClassification")(config)
    return model


def examine(name: str, seeds: int = 1, *, peer: bool = False) -> dict[str, Any]:
    """One row of the table.

    Args:
        name: As in :func:`networks`.
        seeds: Random masks for the laws.
        peer: Prune a copy with Torch-Pruning too.
    """
    model, image = build(name)
    start = time.process_time()
    space = dp.trace(model, image)
    seconds = time.process_time() - start
    call = as_call(image)
    proof = Proof.of(model, call)
    gaps, exact = [], True
    for seed in range(seeds):
        masks = dp.Masks.random(space, keep=(0.3, 0.7), seed=seed)
        gaps.append(difference(proof.model, space, masks, proof.call))
        small = dp.slim(model, space, masks)
        exact &= space.cost_varies or count_flops(small, call)[0] == dp.flops(space, masks)
        exact &= sum(p.numel() for p in small.parameters()) == dp.params(space, masks)
    reasons: dict[str, list[str]] = {}
    for refusal in space.refused:
        reasons.setdefault(refusal.reason, []).append(refusal.layer)
    row = {
        "groups": len(space.groups),
        "filters": int(space.sizes.sum()),
        "share": space.prunable_flops / space.flops,
        "half": space.half_flops / space.flops,
        "seconds": seconds,
        "law 1": max(gaps) <= proof.tolerance,
        "gap": max(gaps),
        "law 2": exact,
        "cost varies": space.cost_varies,
        "attributes": len(space.widths),
        "refused": reasons,
    }
    if peer:
        outputs = [layer for reason, layers in reasons.items() if "output of the network" in reason for layer in layers]
        row[PEER] = with_torch_pruning(model, image, outputs)
    return row


def with_torch_pruning(model: nn.Module, image: Tensor, outputs: list[str]) -> float | str:
    """Share of the FLOPs after Torch-Pruning removed half of every group, or why it failed."""
    import torch_pruning as tp

    small = copy.deepcopy(model)
    dense = count_flops(model, as_call(image))[0]
    signal.signal(signal.SIGPROF, _too_late)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        ignored = [small.get_submodule(name) for name in outputs]
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.MagnitudePruner(small, image, importance, pruning_ratio=0.5, ignored_layers=ignored)
        pruner.step()
        with torch.no_grad():
            small(image)
        return count_flops(small, as_call(image))[0] / dense
    except Exception as error:  # whatever the peer or the narrowed forward raises
        return f"{type(error).__name__}: {error}"[:160]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_late(*_: object) -> None:
    raise TimeoutError(f"took longer than {LIMIT} CPU seconds")


def limited(name: str, cpu_seconds: int, *, peer: bool) -> dict[str, Any]:
    """The row of one network, or the error that prevented it, from a process of its own.

    Args:
        name: As in :func:`networks`.
        cpu_seconds: The process is killed when it has used as many.
        peer: As in :func:`examine`.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(theirs, name, cpu_seconds, peer))
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = ours.recv()
    except EOFError:
        row = {"error": f"killed: more than {cpu_seconds} CPU seconds, or no memory"}
    process.join()
    return row


def _send(pipe: Connection, name: str, cpu_seconds: int, peer: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    try:
        pipe.send(examine(name, peer=peer))
    except Exception as error:  # a refusal, or a network that this version of its package can't build
        pipe.send({"error": f"{type(error).__name__}: {error}"[:400]})


def origin() -> dict[str, str]:
    """Commit, versions and hardware of a row."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True).stdout
    packages = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "transformers", "torch-pruning")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": commit.strip(), **versions, "machine": platform.processor() or platform.machine()}


def write(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the rows as JSON, and the figures of each network as CSV beside it."""
    path.write_text(json.dumps(rows, indent=1) + "\n")
    names = (
        "groups",
        "filters",
        "share",
        "half",
        PEER,
        "seconds",
        "law 1",
        "law 2",
        "attributes",
        "error",
    )
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("network", *names))
        for network, row in rows.items():
            values = (row.get(name, "") for name in names)
            table.writerow((network, *(f"{v:.4g}" if isinstance(v, float) else v for v in values)))


def main() -> None:
    """Examine the networks that are named, or all that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    parser.add_argument("--limit", type=int, default=400, help="CPU seconds for one network")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else {}
    peer, version = find_spec("torch_pruning") is not None, origin()
    for name in args.names or [name for name in networks() if name not in rows]:
        before = {key: rows[name][key] for key in (PEER, *version) if key in rows.get(name, {})}
        kept = PEER in before and all(before.get(key) == version[key] for key in version if key != "commit")
        rows[name] = limited(name, args.limit, peer=peer and not kept) | version
        rows[name] |= {PEER: before[PEER]} if kept and "error" not in rows[name] else {}
        print(name, json.dumps(rows[name]), flush=True)
        rows = {n: rows[n] for n in [*networks(), *rows] if n in rows}
        write(rows, args.out)


if __name__ == "__main__":
    main()
