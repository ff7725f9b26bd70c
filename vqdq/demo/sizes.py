"""How large the demo model is made: one name for everything that has to fit together."""

from __future__ import annotations

from dataclasses import dataclass

CELL = 8  # pixels a side of a latent


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Widths and resolution of a model.

    Attributes:
        resolution: of pictures, in pixels a side.
        widths: channels of the denoiser's three levels, multiples of 64.
        autoencoder_widths: channels of the autoencoder's four levels, the widest resolution first.
        latent_channels: of a latent.
    """

    resolution: int
    widths: tuple[int, int, int]
    autoencoder_widths: tuple[int, int, int, int]
    latent_channels: int

    @property
    def cells(self) -> int:
        """Latents a side."""
        return self.resolution // CELL


SIZES = {
    "standard": Size(
        resolution=128,
        widths=(128, 192, 256),
        autoencoder_widths=(16, 32, 64, 128),
        latent_channels=4,
    ),
    # As many weights as 60 MB hold in 16 bits, and twice as wide where outlines are drawn.
    "large": Size(
        resolution=128,
        widths=(192, 192, 256),
        autoencoder_widths=(32, 48, 64, 96),
        latent_channels=8,
    ),
}
STANDARD = SIZES["standard"]
