"""RQ-VAE: codebooks learnt together with an encoder and a decoder, the alternative to residual k-means.

Choices: what is known to collapse it is avoided: standardised input (the caller's), AdamW at 1e-3, codebooks that start at the k-means centres of the
first batch's latents, dead codes moved to latents that are far from their centre after every epoch.

Shapes: N items, D width of an item vector, Z width of the latent, K codes of a level, B items of a batch.
Source: RQ-VAE (Lee et al., 2022) as used for semantic IDs by TIGER (Rajput et al., 2023), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ugt.kmeans import ALONE, Group, kmeans, nearest, share
from ugt.quantizer import Codebooks, shared

HIDDEN = 128
BATCH = 512
COMMITMENT = 0.25  # beta of the paper


def fit_rq_vae(
    x_ND: np.ndarray,
    k1: int,
    k2: int,
    width: int,
    epochs: int,
    seed: int,
    threads: int = 1,
    group: Group = ALONE,
    parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Codebooks:
    """Two codebooks over the latent, and the encoder in front of them. Deterministic under `seed` with one thread.

    Each worker of `group` takes its share of every batch; `parallel` wraps the network so that its gradients are the mean over the workers (DDP).
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = _Network(x_ND.shape[1], width)
    x = torch.from_numpy(np.ascontiguousarray(x_ND, np.float32))
    net.books = nn.ParameterList([nn.Parameter(torch.from_numpy(book)) for book in _start(_latent(net.encoder, x, group), k1, k2, rng)])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    shared_net = parallel(net)
    for _ in range(epochs):
        net.used = [torch.zeros(len(book), dtype=torch.bool) for book in net.books]
        for batch in torch.from_numpy(rng.permutation(len(x))).split(BATCH):
            # a worker's share may be empty or uneven: sums by the size of the whole batch, times the workers the mean is taken over
            loss = shared_net(x[batch[share(len(batch), group)]]) * group.size / len(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        used = [group.sum(seen_K.numpy().astype(np.int64)) > 0 for seen_K in net.used]
        _reset_dead(_latent(net.encoder, x, group), net.books, used)
    layers = tuple((np.ascontiguousarray(m.weight.detach().numpy().T), m.bias.detach().numpy().copy()) for m in net.encoder if isinstance(m, nn.Linear))
    return Codebooks(net.books[0].detach().numpy().copy(), shared(net.books[1].detach().numpy(), k1), layers)


class _Network(nn.Module):
    """Encoder, codebooks, decoder; called with rows, it gives the sum of their losses and notes which codes they used."""

    books: nn.ParameterList
    used: list[Tensor]

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width))
        self.decoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, inputs))

    def forward(self, x_BD: Tensor) -> Tensor:
        z_BZ = self.encoder(x_BD)
        residual_BZ, total_BZ, loss = z_BZ, torch.zeros_like(z_BZ), z_BZ.new_zeros(())
        for book_KZ, seen_K in zip(self.books, self.used, strict=True):
            code_B = torch.cdist(residual_BZ.detach(), book_KZ.detach()).argmin(1)
            seen_K[code_B] = True
            centre_BZ = book_KZ[code_B]
            pulls = ((residual_BZ.detach() - centre_BZ) ** 2).sum() + COMMITMENT * ((residual_BZ - centre_BZ.detach()) ** 2).sum()
            loss = loss + pulls / z_BZ.shape[1]
            total_BZ = total_BZ + centre_BZ
            residual_BZ = residual_BZ - centre_BZ.detach()
        made_BD = self.decoder(z_BZ + (total_BZ - z_BZ).detach())  # straight-through
        return loss + ((made_BD - x_BD) ** 2).sum() / x_BD.shape[1]


def _latent(encoder: nn.Module, x: Tensor, group: Group) -> np.ndarray:
    with torch.no_grad():
        return group.gather(encoder(x[share(len(x), group)]).numpy())


def _start(z_NZ: np.ndarray, k1: int, k2: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    l1 = kmeans(z_NZ, k1, 10, rng)
    return l1, kmeans(z_NZ - l1[nearest(z_NZ, l1)], k2, 10, rng)


def _reset_dead(z_NZ: np.ndarray, books: nn.ParameterList, used: list[np.ndarray]) -> None:
    """Centres nobody chose in an epoch go to the latents farthest from their own centre."""
    residual = z_NZ
    for book, seen_K in zip(books, used, strict=True):
        centre_KZ = book.detach().numpy()  # shares memory with the parameter
        left = residual - centre_KZ[nearest(residual, centre_KZ)]
        dead = np.flatnonzero(~seen_K)
        far = np.argsort(-(left**2).sum(1), kind="stable")[: len(dead)]
        centre_KZ[dead[: len(far)]] = residual[far]
        residual = left
