"""The building block of every network here."""

from collections.abc import Callable, Sequence

from torch import nn


def mlp(
    n_in: int, hidden: Sequence[int], n_out: int, *, norm: bool = True, activation: Callable[[], nn.Module] = nn.SiLU
) -> nn.Sequential:
    """Stack linear layers with an activation between them, and LayerNorm before each activation if `norm`.

    Shapes: (n_rows, n_in) -> (n_rows, n_out).
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(n_in, width))
        if norm:
            layers.append(nn.LayerNorm(width))
        layers.append(activation())
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))
