"""RQ-VAE: codebooks learnt together with an encoder and a decoder, the alternative to residual k-means.

Choices: what is known to collapse it is avoided: standardised input (the caller's), AdamW at 1e-3, codebooks that start at the k-means centres of the
first batch's latents, dead codes moved to latents that are far from their centre after every epoch.

Shapes: N items, D width of an item vector, Z width of the latent, K codes of a level, B items of a batch.
Source: RQ-VAE (Lee et al., 2022) as used for semantic IDs by TIGER (Rajput et al., 2023), section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ugt.quantizer import Codebooks, kmeans, nearest, shared

HIDDEN = 128
BATCH = 512
COMMITMENT = 0.25  # beta of the paper


def fit_rq_vae(x_ND: np.ndarray, k1: int, k2: int, width: int, epochs: int, seed: int, threads: int = 1) -> Codebooks:
    """Two codebooks over the latent, and the encoder in front of them. Deterministic under `seed` with one thread."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoder = nn.Sequential(nn.Linear(x_ND.shape[1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width))
    decoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, x_ND.shape[1]))
    x = torch.from_numpy(np.ascontiguousarray(x_ND, np.float32))
    books = nn.ParameterList([nn.Parameter(torch.from_numpy(book)) for book in _start(_latent(encoder, x), k1, k2, rng)])
    optimiser = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters(), *books.parameters()], lr=1e-3)
    for _ in range(epochs):
        used = [torch.zeros(len(book), dtype=torch.bool) for book in books]
        for batch in torch.from_numpy(rng.permutation(len(x))).split(BATCH):
            z_BZ = encoder(x[batch])
            quantised_BZ, loss = _quantise(z_BZ, books, used)
            loss = loss + ((decoder(z_BZ + (quantised_BZ - z_BZ).detach()) - x[batch]) ** 2).mean()  # straight-through
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        _reset_dead(_latent(encoder, x), books, used)
    layers = tuple((np.ascontiguousarray(m.weight.detach().numpy().T), m.bias.detach().numpy().copy()) for m in encoder if isinstance(m, nn.Linear))
    return Codebooks(books[0].detach().numpy().copy(), shared(books[1].detach().numpy(), k1), layers)


def _quantise(z_BZ: Tensor, books: nn.ParameterList, used: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the chosen centres, and codebook plus commitment loss."""
    residual_BZ, total_BZ, loss = z_BZ, torch.zeros_like(z_BZ), z_BZ.new_zeros(())
    for book_KZ, seen_K in zip(books, used, strict=True):
        code_B = torch.cdist(residual_BZ.detach(), book_KZ.detach()).argmin(1)
        seen_K[code_B] = True
        centre_BZ = book_KZ[code_B]
        loss = loss + ((residual_BZ.detach() - centre_BZ) ** 2).mean() + COMMITMENT * ((residual_BZ - centre_BZ.detach()) ** 2).mean()
        total_BZ = total_BZ + centre_BZ
        residual_BZ = residual_BZ - centre_BZ.detach()
    return total_BZ, loss


def _latent(encoder: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return encoder(x).numpy()


def _start(z_NZ: np.ndarray, k1: int, k2: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    l1 = kmeans(z_NZ, k1, 10, rng)
    return l1, kmeans(z_NZ - l1[nearest(z_NZ, l1)], k2, 10, rng)


def _reset_dead(z_NZ: np.ndarray, books: nn.ParameterList, used: list[Tensor]) -> None:
    """Centres nobody chose in an epoch go to the latents farthest from their own centre."""
    residual = z_NZ
    for book, seen_K in zip(books, used, strict=True):
        centre_KZ = book.detach().numpy()  # shares memory with the parameter
        left = residual - centre_KZ[nearest(residual, centre_KZ)]
        dead = np.flatnonzero(~seen_K.numpy())
        far = np.argsort(-(left**2).sum(1), kind="stable")[: len(dead)]
        centre_KZ[dead[: len(far)]] = residual[far]
        residual = left
