"""Two pictures and where they differ."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqdq.metrics.images import ImageMetrics, compare, error_map
from vqdq.views import style as look
from vqdq.views.style import SEQUENTIAL, Style, View, digits

Picture = npt.NDArray[np.uint8]


def error_view(
    reference: Picture, variant: Picture, style: Style, *, names: tuple[str, str]
) -> View:
    """Returns reference, variant and the absolute difference in steps of 1/255, on one row.

    Raises:
        UserError: pictures of different sizes.
    """
    found: ImageMetrics = compare(reference, variant)
    errors = 255 * error_map(reference, variant)
    figure = look.figure(880, 288, style, pictures=True)
    grid = figure.subplots(1, 3)
    for index, (name, picture) in enumerate(zip(names, (reference, variant), strict=True)):
        grid[index].imshow(picture, interpolation="none")
        look.title(grid[index], name, style, colour=style.variant(index))
    top = max(float(errors.max()), 1.0)
    image = grid[2].imshow(errors, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="none")
    look.title(grid[2], "Difference", style)
    bar = figure.colorbar(image, ax=grid[2], pad=0.03)
    look.colour_bar(bar, style, "mean |difference| (of 255)")
    for axes in grid:
        look.bare(axes, style)
    words = (
        "The pictures are equal, pixel by pixel."
        if found.identical
        else f"PSNR {digits(found.psnr_db)} dB, SSIM {digits(found.ssim)}; "
        f"{look.share(found.changed)} of the pixels differ, by {digits(255 * found.max_error)} of "
        "255 at most."
    )
    return View(
        figure=figure, alt=f"{names[0]} beside {names[1]}. {words}", caption=words, style=style
    )
