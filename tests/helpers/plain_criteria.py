"""Every criterion of a network's first convolution, computed plainly: loops and autograd, no code of the package.

The network is ``conv_net``: conv1 - BN - ReLU - conv2 - ReLU - conv3 (no BN) - leaky ReLU - pool - fc.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from torch import Tensor, nn

from tests.helpers.networks import conv

Data = list[tuple[Tensor, Tensor]]
Score = Callable[[nn.Module, Data], np.ndarray]
FILTERS = 7


def conv_net() -> nn.Sequential:
    """A network with random parameters and random BN statistics."""
    net = nn.Sequential(
        conv(3, FILTERS),
        nn.BatchNorm2d(FILTERS),
        nn.ReLU(),
        conv(FILTERS, 6),
        nn.ReLU(),
        conv(6, 5),
        nn.LeakyReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    with torch.no_grad():
        for tensor in (*net[1].parameters(), net[1].running_mean, net[1].running_var):
            tensor.copy_(torch.rand_like(tensor) + 0.2)
        net[1].weight.mul_(torch.tensor([1.0, -1, 1, -1, 1, 1, -1]))
    return net


def batches() -> Data:
    options = {"generator": torch.Generator().manual_seed(1)}
    return [(torch.randn(n, 3, 6, 6, **options), torch.randint(0, 4, (n,), **options)) for n in (8, 8, 5)]


def everything(data: Data) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


def rows(net: nn.Module) -> np.ndarray:
    return net[0].weight.detach().double().numpy().reshape(FILTERS, -1)


# ------------------------------------------------------------------ weights
def l1(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([sum(abs(w) for w in f.ravel()) for f in net[0].weight.detach().numpy()])


def l2(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([sum(w * w for w in f.ravel()) ** 0.5 for f in net[0].weight.detach().numpy()])


def fpgm(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([sum(np.linalg.norm(a - b) for b in rows(net)) for a in rows(net)])


def fermat(net: nn.Module, data: Data) -> np.ndarray:
    filters = rows(net)
    fermat_point = minimize(lambda x: np.linalg.norm(filters - x, axis=1).sum(), filters.mean(axis=0), tol=1e-14)
    return np.linalg.norm(filters - fermat_point.x, axis=1)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


def others(i: int, among: range | set[int] = range(FILTERS)) -> list[int]:
    return [j for j in among if j != i]


def cosine(net: nn.Module, data: Data) -> np.ndarray:
    w = rows(net)
    return np.array([1 - np.mean([cos(w[i], w[j]) for j in others(i)]) for i in range(FILTERS)])


def whc(net: nn.Module, data: Data) -> np.ndarray:
    w, norm = rows(net), np.linalg.norm(rows(net), axis=1)
    return np.array([norm[i] * sum(norm[j] * (1 - cos(w[i], w[j])) for j in others(i)) for i in range(FILTERS)])


def correlation(net: nn.Module, data: Data) -> np.ndarray:
    r, norm = abs(np.corrcoef(rows(net))), np.linalg.norm(rows(net), axis=1)
    remaining, scores = set(range(FILTERS)), np.ones(FILTERS)
    while len(remaining) > 1:
        pair = max(((i, j) for i in remaining for j in others(i, remaining)), key=lambda p: r[p])
        removed = min(pair, key=lambda i: norm[i])
        scores[removed] = 1 - r[pair]
        remaining.remove(removed)
    return scores


def lamp(net: nn.Module, data: Data) -> np.ndarray:
    square = (rows(net) ** 2).sum(axis=1)
    return np.array([s / square[square >= s].sum() for s in square])


def svd(net: nn.Module, data: Data) -> np.ndarray:
    root = np.diag(sqrtm(rows(net) @ rows(net).T).real)
    return root / root.sum()


def out_l1(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([float(net[3].weight.detach()[:, i].abs().sum()) for i in range(FILTERS)])


# ------------------------------------------------------------------ normalisation
def bn_scale(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([abs(float(g)) for g in net[1].weight.detach()])


def bn_shift(net: nn.Module, data: Data) -> np.ndarray:
    return np.array([abs(float(b)) for b in net[1].bias.detach()])


# ------------------------------------------------------------------ activations
def second_input(net: nn.Module, data: Data) -> Tensor:
    """Input of the second convolution, shape (images, filters, height, width)."""
    return torch.cat([copy.deepcopy(net).eval()[:3](x) for x, _ in data]).detach()


def mean_activation(net: nn.Module, data: Data) -> np.ndarray:
    return second_input(net, data).abs().mean(dim=(0, 2, 3)).numpy()


def apoz(net: nn.Module, data: Data) -> np.ndarray:
    return 1 - (second_input(net, data) == 0).float().mean(dim=(0, 2, 3)).numpy()


def entropy(net: nn.Module, data: Data) -> np.ndarray:
    entropies = []
    for values in second_input(net, data).mean(dim=(2, 3)).T.numpy():
        p = np.histogram(values, bins=10)[0] / len(values)
        entropies.append(-sum(x * np.log(x) for x in p if x > 0))
    return np.array(entropies)


def hrank(net: nn.Module, data: Data) -> np.ndarray:
    return np.mean([[np.linalg.matrix_rank(m) for m in image] for image in second_input(net, data).numpy()], axis=0)


def nuclear(a: np.ndarray) -> float:
    return float(np.linalg.svd(a, compute_uv=False).sum())


def chip(net: nn.Module, data: Data) -> np.ndarray:
    maps = second_input(net, data).flatten(2).numpy()
    return np.mean([[nuclear(a) - nuclear(np.delete(a, i, axis=0)) for i in range(FILTERS)] for a in maps], axis=0)


def thinet(net: nn.Module, data: Data) -> np.ndarray:
    maps, weight = second_input(net, data)[:16].double(), net[3].weight.detach().double()
    alone = [F.conv2d(maps[:, [i]], weight[:, [i]], padding=1).numpy() for i in range(FILTERS)]
    removed, removal_step = [], np.zeros(FILTERS)
    for step in range(FILTERS):
        remaining = [i for i in range(FILTERS) if i not in removed]
        removed.append(min(remaining, key=lambda i: ((sum(alone[j] for j in removed) + alone[i]) ** 2).sum()))
        removal_step[removed[-1]] = step
    return removal_step


def outputs_without(net: nn.Module, data: Data) -> list[Tensor]:
    """Outputs with the channel of filter i set to zero, for every i."""
    net, outputs = copy.deepcopy(net).eval(), []
    for i in range(FILTERS):
        maps = second_input(net, data)
        maps[:, i] = 0
        outputs.append(net[3:](maps).detach())
    return outputs


def kl(net: nn.Module, data: Data) -> np.ndarray:
    p = copy.deepcopy(net).eval()(everything(data)[0]).softmax(dim=1).detach().double()
    probabilities = (q.softmax(dim=1).double() for q in outputs_without(net, data))
    return np.array([float((p * (p / q).log()).sum(dim=1).mean()) for q in probabilities])


def oracle(net: nn.Module, data: Data) -> np.ndarray:
    x, y = everything(data)
    dense = F.cross_entropy(copy.deepcopy(net).eval()(x), y).detach()
    return np.array([float(F.cross_entropy(q, y) - dense) for q in outputs_without(net, data)])


# ------------------------------------------------------------------ gradients
def gradients(net: nn.Module, data: Data, *names: str) -> list[dict[str, Tensor]]:
    """Value x gradient of parameters, for each batch."""
    net, products = copy.deepcopy(net).eval(), []
    for x, y in data:
        values = [net.get_parameter(n) for n in names]
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), values)
        products.append({n: v.detach() * g for n, v, g in zip(names, values, grads, strict=True)})
    return products


def taylor_weight(net: nn.Module, data: Data) -> np.ndarray:
    parts = gradients(net, data, "0.weight")
    return np.mean([[float(f.sum()) ** 2 for f in part["0.weight"]] for part in parts], axis=0)


def taylor_gate(net: nn.Module, data: Data) -> np.ndarray:
    """As in the paper: a gate of 1 on the BN's output, and the gradient with respect to it."""
    net, squares = copy.deepcopy(net).eval(), []
    for x, y in data:
        gate = torch.ones(FILTERS, 1, 1, requires_grad=True)
        loss = F.cross_entropy(net[2:](net[:2](x) * gate), y)
        squares.append(torch.autograd.grad(loss, gate)[0].ravel().numpy() ** 2)
    return np.mean(squares, axis=0)


def image_changes(net: nn.Module, data: Data) -> np.ndarray:
    """Sum over positions of z dL/dz, computed for one image at a time, shape (images, filters)."""
    net, changes = copy.deepcopy(net).eval(), []
    for x, y in zip(*everything(data), strict=True):
        z = net[:3](x[None]).detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(net[3:](z), y[None]), z)[0]
        changes.append((z * gradient).sum(dim=(0, 2, 3)).detach().numpy())
    return np.array(changes)


def taylor_activation(net: nn.Module, data: Data) -> np.ndarray:
    change = abs(image_changes(net, data)).mean(axis=0)
    return change / np.linalg.norm(change)


def group_fisher(net: nn.Module, data: Data) -> np.ndarray:
    flops = 36 * (3 * 9 + 2 + 9 * 6)  # the filter, its BN (fvcore counts 2 per value), its columns in conv2
    return (image_changes(net, data) ** 2).mean(axis=0) / flops


def snip(net: nn.Module, data: Data) -> np.ndarray:
    change = gradients(net, [everything(data)], "0.weight")[0]["0.weight"].abs().sum(dim=(1, 2, 3)).numpy()
    return change / change.sum()


def grasp(net: nn.Module, data: Data) -> np.ndarray:
    """Forward-over-reverse: the derivative of the gradient in the direction of the gradient."""
    net, (x, y) = copy.deepcopy(net).eval(), everything(data)
    point = {n: p.detach() for n, p in net.named_parameters()}

    def gradient(p: dict[str, Tensor]) -> dict[str, Tensor]:
        return torch.func.grad(lambda p: F.cross_entropy(torch.func.functional_call(net, p, (x,)), y))(p)

    product = torch.func.jvp(gradient, (point,), (gradient(point),))[1]
    return (point["0.weight"] * product["0.weight"]).sum(dim=(1, 2, 3)).numpy()


def obd(net: nn.Module, data: Data) -> np.ndarray:
    x, y = everything(data)
    parts = gradients(net, [(x[[i]], y[[i]]) for i in range(len(x))], "0.weight")  # w g, and (w g)^2 = w^2 g^2
    return np.mean([p["0.weight"].square().sum(dim=(1, 2, 3)).numpy() for p in parts], axis=0) / 2


def obd_c(net: nn.Module, data: Data) -> np.ndarray:
    """From both Kronecker factors: input patches, and output gradients of one image at a time."""
    net, (x, y) = copy.deepcopy(net).eval(), everything(data)
    patches = F.unfold(x, 3, padding=1)
    a = torch.einsum("njp,nkp->jk", patches, patches) / (len(x) * 36)
    s = torch.zeros(FILTERS)
    for i in range(len(x)):
        output = net[0](x[[i]]).detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(net[1:](output), y[[i]]), output)[0]
        s += gradient.square().sum(dim=(0, 2, 3)) / len(x)
    w = net[0].weight.detach().flatten(1)
    return (s * torch.einsum("ij,jk,ik->i", w, a, w) / 2).numpy()


def synflow(net: nn.Module, data: Data) -> np.ndarray:
    net = copy.deepcopy(net).double()
    weight = net[0].weight.detach().abs().requires_grad_()
    x = F.conv2d(torch.ones(1, 3, 6, 6, dtype=torch.float64), weight, net[0].bias.abs(), padding=1)
    scale = net[1].weight.abs() / (net[1].running_var + net[1].eps).sqrt()
    x = x * scale.view(-1, 1, 1) + net[1].bias.abs().view(-1, 1, 1)
    for layer in (net[3], net[5]):
        x = F.conv2d(x, layer.weight.abs(), layer.bias.abs(), padding=1)
    total = F.linear(x.mean(dim=(2, 3)), net[9].weight.abs(), net[9].bias.abs()).sum()
    return (weight * torch.autograd.grad(total, weight)[0]).detach().sum(dim=(1, 2, 3)).numpy()


def attention(net: nn.Module, data: Data) -> np.ndarray:
    """Three blocks computed by hand, in the order of the next layers."""
    net, generator = copy.deepcopy(net).eval().requires_grad_(False), torch.Generator().manual_seed(0)

    def random_weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    def block(n: int) -> list[Tensor]:
        hidden = max(2, n // 4)
        w1, b1 = random_weight(hidden, n), random_weight(hidden).detach().zero_().requires_grad_()
        w2, b2 = random_weight(n, hidden), random_weight(n).detach().fill_(2).requires_grad_()
        return [w1, b1, w2, b2]

    blocks = [block(n) for n in (FILTERS, 6, 5)]
    adam, last_gates = torch.optim.Adam([p for b in blocks for p in b], lr=0.02), []
    for epoch in range(5):
        for x, y in data:
            gates = []
            for part, (w1, b1, w2, b2) in zip((net[:3], net[3:5], net[5:9]), blocks, strict=True):
                x = part(x)
                pooled = x.flatten(2).mean(dim=2) if x.dim() > 2 else x
                gates.append(torch.sigmoid(F.linear(F.linear(pooled, w1, b1).relu(), w2, b2)))
                x = x * gates[-1].view(*gates[-1].shape, *[1] * (x.dim() - 2))
            adam.zero_grad()
            (F.cross_entropy(net[9](x), y) + 0.1 * torch.stack([g.mean() for g in gates]).mean()).backward()
            adam.step()
            last_gates += [gates[0].detach()] if epoch == 4 else []
    return torch.cat(last_gates).mean(dim=0).numpy()


PLAIN: dict[str, Score] = {
    f.__name__: f
    for f in (
        *(l1, l2, fpgm, fermat, cosine, whc, correlation, lamp, svd, out_l1, bn_scale, bn_shift),
        *(mean_activation, apoz, entropy, hrank, chip, thinet, kl, oracle, attention),
        *(taylor_weight, taylor_gate, taylor_activation, group_fisher, snip, grasp, obd, obd_c, synflow),
    )
}
