"""The look of the page: two palettes, one accent, and how they reach Gradio and our own style
sheets.

Every colour is named once here. Gradio's variables and ours (`--vq-…`) are both derived from a
`Palette`,
and `contrast` lets a test hold every pair of text and ground to the ratio that people need.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

from gradio.themes import Base

STATIC = Path(__file__).parent / "static"
STYLE_SHEETS = (
    "gradio.css", "base.css", "compress.css", "viewer.css", "runs.css", "inspect.css",
    "compare.css", "blame.css", "blind.css", "grid.css", "model.css",
)  # fmt: skip
"""Each is nested below the page's container (CSS nesting), so that our rules win over Gradio's."""
SCRIPTS = (
    "page.js", "viewer.js", "inspect.js", "blame.js", "blind.js", "grid.js", "runs.js", "model.js",
)  # fmt: skip

SANS = (
    'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,'
    ' "Noto Sans", "Liberation Sans", sans-serif'
)
MONO = 'ui-monospace, "SFMono-Regular", Menlo, Consolas, "Liberation Mono", monospace'

VARIANT_COLOURS = ("#8b94a1", "#4c8dd6", "#e08a3c", "#3fa47a", "#a879c9")
"""FP16 first, then a set that colour-blind people can tell apart. A variant keeps its colour
everywhere.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Colours of one mode, `#rrggbb`.

    Attributes:
        page, panel, line: grounds and the lines between them; `edge` outlines what can be operated.
        raised: a control's ground under the pointer; `text`, `muted`: on page and panel.
        accent, accent_hover, on_accent: the one primary action and the text on it.
        good, warn, bad: words that report a state; `bad_ground`: behind a failure.
    """

    page: str
    panel: str
    line: str
    edge: str
    raised: str
    text: str
    muted: str
    accent: str
    accent_hover: str
    on_accent: str
    good: str
    warn: str
    bad: str
    bad_ground: str


DARK = Palette(
    page="#0e1116",
    panel="#161b22",
    line="#2a313c",
    edge="#697586",
    raised="#1f2630",
    text="#e6e9ee",
    muted="#9aa4b2",
    accent="#35b5c4",
    accent_hover="#54c7d4",
    on_accent="#04191c",
    good="#5fc79a",
    warn="#e6b35a",
    bad="#ff9c94",
    bad_ground="#2a171a",
)
LIGHT = Palette(
    page="#f7f8fa",
    panel="#ffffff",
    line="#d9dee6",
    edge="#7b8697",
    raised="#eef1f5",
    text="#14181f",
    muted="#566070",
    accent="#0b7285",
    accent_hover="#095e6e",
    on_accent="#ffffff",
    good="#14704b",
    warn="#8a5300",
    bad="#b3261e",
    bad_ground="#fdeeec",
)


def contrast(first: str, second: str) -> float:
    """Returns the WCAG 2 contrast ratio of two `#rrggbb` colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def variant_colour(index: int) -> str:
    """Returns the colour of variant `index`; 0 is FP16, and the set repeats after its last."""
    if index == 0:
        return VARIANT_COLOURS[0]
    return VARIANT_COLOURS[1 + (index - 1) % (len(VARIANT_COLOURS) - 1)]


def build() -> Base:
    """Returns the Gradio theme, our style sheets included (served as one local file)."""
    theme = Base(font=[SANS], font_mono=[MONO])  # pyright: ignore[reportArgumentType]
    theme.name = "vqdq"
    known = signature(Base.set).parameters
    settings: dict[str, str] = _gradio(LIGHT)
    dark = {f"{name}_dark": value for name, value in _gradio(DARK).items()}
    settings |= {name: value for name, value in dark.items() if name in known}
    theme.set(**settings, **_SHAPES)  # pyright: ignore[reportArgumentType]
    theme.custom_css = style_sheet()
    return theme


def style_sheet() -> str:
    """Returns all of our CSS: the variables of both modes, the ground, and the nested sheets."""
    nested = (STATIC.joinpath(name).read_text(encoding="utf-8") for name in STYLE_SHEETS)
    scoped = (f".gradio-container.gradio-container {{\n{sheet}\n}}" for sheet in nested)
    return "\n".join((_variables(), STATIC.joinpath("ground.css").read_text(), *scoped))


def head() -> str:
    """Returns what the page needs in its `<head>`: our scripts, inline, from this machine."""
    return "\n".join(f"<script>{STATIC.joinpath(name).read_text()}</script>" for name in SCRIPTS)


_SHAPES = {
    "body_text_size": "15px",
    "prose_text_size": "15px",
    "block_label_text_size": "13px",
    "block_title_text_size": "13px",
    "block_info_text_size": "13px",
    "block_title_text_weight": "500",
    "block_label_text_weight": "500",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_radius": "8px",
    "block_label_border_width": "0px",
    "container_radius": "8px",
    "form_gap_width": "16px",
    "layout_gap": "16px",
    "input_border_width": "1px",
    "input_radius": "6px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_text_size": "15px",
    "input_padding": "8px 12px",
    "checkbox_border_width": "1px",
    "checkbox_label_border_width": "1px",
    "checkbox_label_padding": "6px 12px",
    "checkbox_label_text_size": "15px",
    "checkbox_shadow": "none",
    "button_border_width": "1px",
    "button_transition": "background-color 120ms ease, border-color 120ms ease",
    "button_large_padding": "10px 20px",
    "button_large_radius": "8px",
    "button_large_text_size": "15px",
    "button_large_text_weight": "600",
    "button_medium_padding": "8px 16px",
    "button_medium_radius": "8px",
    "button_medium_text_size": "15px",
    "button_medium_text_weight": "500",
    "button_small_padding": "4px 12px",
    "button_small_radius": "6px",
    "button_small_text_size": "13px",
    "button_small_text_weight": "500",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "section_header_text_size": "15px",
    "section_header_text_weight": "600",
    "table_radius": "8px",
}


def _gradio(palette: Palette) -> dict[str, str]:
    """The palette in the names that Gradio's components read."""
    clear = "transparent"
    return {
        "body_background_fill": palette.page,
        "body_text_color": palette.text,
        "body_text_color_subdued": palette.muted,
        "background_fill_primary": palette.panel,
        "background_fill_secondary": palette.page,
        "border_color_primary": palette.line,
        "border_color_accent": palette.edge,
        "border_color_accent_subdued": palette.line,
        "color_accent": "var(--vq-text)",
        "color_accent_soft": palette.raised,
        "link_text_color": palette.text,
        "link_text_color_hover": palette.text,
        "link_text_color_active": palette.text,
        "link_text_color_visited": palette.text,
        "code_background_fill": palette.raised,
        "block_background_fill": clear,
        "block_border_color": clear,
        "block_label_background_fill": clear,
        "block_label_text_color": palette.muted,
        "block_title_text_color": palette.text,
        "block_info_text_color": palette.muted,
        "panel_background_fill": clear,
        "accordion_text_color": palette.text,
        "input_background_fill": palette.panel,
        "input_background_fill_focus": palette.panel,
        "input_background_fill_hover": palette.panel,
        "input_border_color": palette.edge,
        "input_border_color_focus": palette.accent,
        "input_border_color_hover": palette.text,
        "input_placeholder_color": palette.muted,
        "checkbox_background_color": palette.panel,
        "checkbox_background_color_focus": palette.panel,
        "checkbox_background_color_hover": palette.raised,
        "checkbox_background_color_selected": palette.text,
        "checkbox_border_color": palette.edge,
        "checkbox_border_color_focus": palette.accent,
        "checkbox_border_color_hover": palette.text,
        "checkbox_border_color_selected": palette.text,
        "checkbox_label_background_fill": palette.panel,
        "checkbox_label_background_fill_hover": palette.raised,
        "checkbox_label_background_fill_selected": palette.raised,
        "checkbox_label_border_color": palette.line,
        "checkbox_label_border_color_hover": palette.edge,
        "checkbox_label_border_color_selected": palette.text,
        "checkbox_label_text_color": palette.text,
        "checkbox_label_text_color_selected": palette.text,
        "error_background_fill": palette.bad_ground,
        "error_border_color": palette.bad,
        "error_text_color": palette.bad,
        "error_icon_color": palette.bad,
        "loader_color": palette.muted,
        "slider_color": palette.text,
        "stat_background_fill": palette.raised,
        "table_border_color": palette.line,
        "table_even_background_fill": palette.panel,
        "table_odd_background_fill": palette.panel,
        "table_row_focus": palette.raised,
        "table_text_color": palette.text,
        "button_primary_background_fill": palette.accent,
        "button_primary_background_fill_hover": palette.accent_hover,
        "button_primary_border_color": palette.accent,
        "button_primary_border_color_hover": palette.accent_hover,
        "button_primary_text_color": palette.on_accent,
        "button_primary_text_color_hover": palette.on_accent,
        "button_secondary_background_fill": palette.panel,
        "button_secondary_background_fill_hover": palette.raised,
        "button_secondary_border_color": palette.edge,
        "button_secondary_border_color_hover": palette.text,
        "button_secondary_text_color": palette.text,
        "button_secondary_text_color_hover": palette.text,
        "button_cancel_background_fill": palette.panel,
        "button_cancel_background_fill_hover": palette.raised,
        "button_cancel_border_color": palette.edge,
        "button_cancel_text_color": palette.text,
    }


def _variables() -> str:
    """Our own CSS variables for both modes; dark wins where Gradio marks the body so."""
    variants = "".join(f"--vq-v{i}:{colour};" for i, colour in enumerate(VARIANT_COLOURS))
    blocks = [f":root{{{variants}--vq-sans:{SANS};--vq-mono:{MONO};}}"]
    for selector, palette in ((":root", LIGHT), (":root .dark,:root.dark", DARK)):
        names = {name.replace("_", "-"): value for name, value in asdict(palette).items()}
        blocks.append(f"{selector}{{{''.join(f'--vq-{k}:{v};' for k, v in names.items())}}}")
    return "\n".join(blocks)


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
