"""How far variants stray, step by step: noise predictions and latents, forced and free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vqdq.capture.along import TrajectoryRecord
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import Style, View


def trajectory(records: Sequence[TrajectoryRecord], style: Style) -> View:
    """Returns SQNR and cosine by step, one colour a variant: full lines forced, dashed free."""
    figure, (top, below) = look.row(2, 320, style)
    lines = {
        "SQNR of the noise prediction (dB)": (top, "forced_sqnr_db", "free_sqnr_db"),
        "1 − cosine of the latents": (below, "forced_cosine", "free_cosine"),
    }
    for label, (axes, forced, free) in lines.items():
        look.quiet(axes, style)
        axes.set_xlabel("sampler step")
        look.title(axes, label, style)
        for index, record in enumerate(records):
            for name, dashes in ((forced, "-"), (free, (0, (4, 3)))):
                values = getattr(record, name)
                shown = values if name.endswith("db") else np.maximum(1 - values, 1e-7)
                steps = np.arange(1, len(values) + 1)
                axes.plot(
                    steps,
                    np.where(np.isfinite(shown), shown, np.nan),
                    color=style.variant(index + 1),
                    linestyle=dashes,
                    linewidth=1.8,
                    label=look.drawable(record.label) if dashes == "-" else None,
                )
        look.whole_steps(axes)
    look.log_y(below)
    top.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL)
    words = " ".join(_sentence(record) for record in records)
    return View(
        figure=figure,
        alt=f"Error along the sampler's steps. {words}",
        caption=f"Full: both models see the reference's latents. Dashed: each its own. {words}",
        style=style,
        data=data.stacked(
            {
                record.label: data.table(
                    step=np.arange(1, len(record.timesteps) + 1),
                    timestep=np.array(record.timesteps),
                    forced_sqnr_db=record.forced_sqnr_db,
                    free_sqnr_db=record.free_sqnr_db,
                    forced_cosine=record.forced_cosine,
                    free_cosine=record.free_cosine,
                    samples=record.samples,
                )
                for record in records
            }
        ),
    )


def _sentence(record: TrajectoryRecord) -> str:
    forced = record.forced_sqnr_db
    finite = np.where(np.isfinite(forced), forced, np.nan)
    if not np.isfinite(finite).any():
        return f"{record.label}: no step was compared."
    worst = int(np.nanargmin(finite))
    end = float(record.free_cosine[-1])
    ends = f", the latents end at a cosine of {end:.4f}" if np.isfinite(end) else ""
    many = "picture" if record.samples == 1 else "pictures"
    return (
        f"{record.label}: lowest at step {worst + 1} with {digits(float(finite[worst]))} dB{ends} "
        f"({record.samples} {many})."
    )
