"""A finished search as markup: the layer most to blame, sets of repairs to take, all layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vqdq.durable import write_bytes
from vqdq.errors import UserError
from vqdq.jobs.blame_result import BlamedLayer, BlameResult, Offer, brief
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.run import RunRecord, read_json
from vqdq.models.blame_report import REGION, WHOLE, BlameReport
from vqdq.quantities import digits, duration, size
from vqdq.recipe import Recipe
from vqdq.ui import links
from vqdq.ui.blame_look import RANKS, BlameLook
from vqdq.ui.desk import Desk
from vqdq.ui.settings import Wish
from vqdq.ui.wording import chip, count, escape
from vqdq.views import blame as views
from vqdq.views.style import DARK, LIGHT, PAGE, PEN, Style, View, share

FIRST = 15
FORMATS = ("png", "svg", "csv")
LONGEST_LINK = 3500  # characters that the page takes from one part of its address, and some room
_MEASURED = "Measured on recorded steps of this very picture, errors in the noise prediction."


def shown(desk: Desk, run: RunRecord, look: BlameLook, *, narrow: bool, recorded: bool) -> str:
    """Returns the result of a finished search.

    Args:
        narrow: the page is a phone's; recorded: there is a recording that a layer can be seen in.

    Raises:
        UserError: its files are missing or damaged.
    """
    values = result_of(run)
    area = area_of(values, look)
    return (
        '<div class="vq-part vq-blame-result">'
        '<button type="button" data-act="narrow" data-value="" hidden></button>'
        f"{_lead(values, area)}{_offers(desk, run, values, look, narrow)}"
        f"{_ranking(values, look, area, recorded)}"
        f"{_figure(run, 'steps', 'When each layer costs most', look, narrow)}</div>"
    )


def result_of(run: RunRecord) -> BlameResult:
    """Returns what a run found.

    Raises:
        UserError: it is missing.
    """
    values: Any = run.result or read_json(run.folder / "result.json")
    if not values or "layers" not in values or "offers" not in values:
        raise UserError("The result is missing.", where=str(run.folder), remedy="Find them again.")
    return values


def area_of(values: BlameResult, look: BlameLook) -> str:
    """Returns "region" or "whole": what is looked at, of what there is."""
    return "region" if values["region"] and look.area == "region" else "whole"


def chosen(run: RunRecord, look: BlameLook) -> Offer | None:
    """Returns the set of repairs that is looked at: the chosen, else the proposed one, else None.

    Raises:
        UserError: the result is missing.
    """
    offers = result_of(run)["offers"]
    place = _place(offers, look)
    return offers[place] if place >= 0 else None


def saved(run: RunRecord, look: BlameLook, name: str, kind: str, *, dark: bool) -> Path:
    """Returns the path of a figure as a file in the run's folder, after writing it.

    Raises:
        UserError: no such figure or format, or a full disk.
    """
    if kind not in FORMATS:
        raise UserError(f'"{kind[:20]}" is no format.', where="figure", remedy="Use PNG or SVG.")
    view = _view(run, name, look, DARK if dark else LIGHT)
    with PEN:
        content = view.content(kind)
    area = area_of(result_of(run), look)
    path = run.folder / "figures" / f"blame-{name}-{area}.{kind}"
    with disk_faults(path):
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, content)
    return path


def _lead(values: BlameResult, area: str) -> str:
    """One sentence about the worst layer, and how everything here is known."""
    worst = ordered(values["layers"], area, "share")[:1]
    total, known = len(values["layers"]), values["measured"]
    where = " of what went wrong in the region" if area == "region" else " of the whole error"
    first = ""
    for row in worst:
        scores: Any = row[_key(area)] or {}
        first = (
            f'<p class="vq-blame-lead"><b>{escape(row["brief"])}</b> is most to blame:'
            f" {share(scores.get('share') or 0.0)}{where}. {chip('measured', _MEASURED)}</p>"
        )
    rest = (
        "all measured both ways."
        if known == total
        else f"the worst {known} measured both ways, the other {total - known} by an estimate of"
        f" what each does alone. {chip('estimated', 'To first order, from gradients.')}"
    )
    inside = values["region_db"]
    region = "" if inside is None else f", {digits(inside)} dB in the region"
    return (
        f'{first}<p class="vq-muted">{escape(values["label"])}: {digits(values["before_db"])} dB in'
        f" the noise prediction{region}, at {count(len(values['steps_measured']), 'step')} of"
        f" “{escape(values['prompt'])}”, seed {values['seed']}. Of {count(total, 'layer')}"
        f" {rest} Took {duration(values['seconds'])}.</p>"
    )


def _offers(desk: Desk, run: RunRecord, values: BlameResult, look: BlameLook, narrow: bool) -> str:
    """The sets of repairs as cards, the chosen one in full, and the button that makes it."""
    offers = values["offers"]
    place = _place(offers, look)
    if place < 0:
        return (
            '<div class="vq-nothing"><h3>No repair helps</h3><p>Putting the worst layers back'
            " regains nothing: the error is spread over all of them. Compress with more"
            " bits.</p></div>"
        )
    cards = "".join(_card(index, each, index == place) for index, each in enumerate(offers))
    offer = offers[place]
    note = chip("measured", "Measured with all of these repairs in place, on the same steps.")
    everywhere = (
        f" In the whole picture {_signed(offer['whole_db'] - values['before_db'])} dB."
        if values["region"]
        else ""
    )
    again = (
        " A new compression calibrates and learns again, which was not measured."
        if values["relearns"]
        else ""
    )
    names = "".join(
        f'<li title="{escape(name)}">{escape(brief(name))}</li>' for name in offer["layers"]
    )
    link = link_of(desk, offer)
    beside = (
        f'<a class="vq-button vq-button-quiet" href="?{escape(link)}">Put it in the Compress tab'
        "</a>"
        if link
        else ""
    )
    sentence = offer["sentence"].replace(" (measured)", "").replace("-", "−")
    return (
        "<h3>Mend it</h3>"
        f'<div class="vq-offers" role="group" aria-label="Sets of repairs">{cards}</div>'
        f'<div class="vq-offer-full"><p role="status">{escape(sentence)} {note}{everywhere}</p>'
        f'<p class="vq-muted">{size(offer["total_bytes"])} instead of'
        f" {size(values['variant_bytes'])}: exact. From each layer alone"
        f" {_signed(offer['predicted_gain_db'])} dB were expected.{again}</p>"
        f'<ul class="vq-blame-names">{names}</ul><div class="vq-actions">'
        '<button type="button" class="vq-button primary" data-act="mend">Compress with this repair'
        f"</button>{beside}</div></div>"
        f"{_figure(run, 'repairs', 'What repairs give for their bytes', look, narrow)}"
    )


def _card(index: int, offer: Offer, on: bool) -> str:
    mark = "<small>proposed</small>" if offer["proposed"] else ""
    layers = count(len(offer["layers"]), "layer")
    bits = views.bits_in_words(offer["bits"])
    added = size(abs(offer["added_bytes"]))
    sign = "+" if offer["added_bytes"] >= 0 else "−"
    gain = f"{_signed(offer['gain_db'])} dB"
    return (
        f'<button type="button" class="vq-card vq-offer" data-act="offer" data-value="{index}"'
        f' aria-pressed="{str(on).lower()}"><b>{gain}</b><span>{sign}{added}</span>'
        f"<small>{layers}, {bits}</small>{mark}</button>"
    )


def link_of(desk: Desk, offer: Offer) -> str:
    """Returns the address that puts a repair into the Compress tab; "" where none can hold it."""
    recipe = Recipe.from_json(offer["recipe"])
    try:
        text = links.link_of(desk, Wish(recipe=recipe))
        back = links.wish_in(desk, dict(parse_qsl(text)))
    except UserError:
        return ""
    fits = all(len(part) < LONGEST_LINK for _, part in parse_qsl(text))
    same = back is not None and back.recipe.digest == recipe.digest
    return f"tab=compress&{text}" if fits and same else ""


def ordered(rows: Sequence[BlamedLayer], area: str, by: str) -> list[BlamedLayer]:
    """Returns the layers, worst first; those that were not measured follow by their estimate."""

    def key(row: BlamedLayer) -> tuple[int, float]:
        scores: Any = row[_key(area)]
        value = None if scores is None else scores.get(by)
        if value is not None:
            return 0, value if by == "damage_db" else -value
        estimate = row["estimate_db"]
        return 1 + (scores is None), 1e9 if estimate is None else estimate

    return sorted(rows, key=key)


def _ranking(values: BlameResult, look: BlameLook, area: str, recorded: bool) -> str:
    rows = ordered(values["layers"], area, look.by)
    some = rows if look.everything else rows[:FIRST]
    most = max((_share(row, area) for row in rows), default=0.0)
    estimated = area == ("region" if values["region"] else "whole")
    body = "".join(_row(row, area, most, recorded, estimated) for row in some)
    more = ""
    if len(rows) > FIRST:
        words = f"The worst {FIRST}" if look.everything else f"All {len(rows)} layers"
        more = (
            f'<div class="vq-actions"><button type="button" class="vq-button vq-button-small"'
            f' data-act="all">{words}</button></div>'
        )
    picks = _picks("by", RANKS, look.by, "Sorted by")
    if values["region"]:
        areas = (("region", "The region", ""), ("whole", "Whole picture", ""))
        picks += _picks("area", areas, area, "Of which part of the picture")
    return (
        f'<h3>Layers, the worst first</h3><div class="vq-pick-rows">{picks}</div>'
        '<div class="vq-blame-scroll" tabindex="0" role="region" aria-label="Layers">'
        '<table class="vq-numbers vq-blame-table"><thead><tr>'
        '<th scope="col">Layer</th><th scope="col">Share of the error</th>'
        '<th scope="col" title="Quality regained, one standard error">Put back</th>'
        '<th scope="col" title="The reference with only this layer compressed">Alone</th>'
        '<th scope="col">Size</th><th scope="col">To 16 bits</th>'
        '<th scope="col"><span class="vq-unseen">Look</span></th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _row(row: BlamedLayer, area: str, most: float, recorded: bool, estimated: bool) -> str:
    """One layer; `estimated` when its estimate is of this area."""
    scores: Any = row[_key(area)]
    if scores is None:
        bar, gain = '<span class="vq-muted">not measured</span>', "–"
        near = row["estimate_db"] if estimated else None
        alone = "–" if near is None else f"≈ {digits(near)} dB"
        alone = f'<span class="vq-muted" title="Estimated, to first order">{alone}</span>'
    else:
        part = _share(row, area)
        wide = 100 * max(part, 0.0) / most if most > 0 else 0.0
        words = share(part).replace("-", "−")
        bar = f'<span class="vq-share"><i style="width:{wide:.1f}%"></i></span>{words}'
        gain = _with_error(scores["gain_db"], scores["gain_error_db"], 2)
        alone = _with_error(scores["damage_db"], scores["damage_error_db"], 1)
    name = escape(row["name"])
    how = f"{row['method']}, {digits(row['bits_per_weight'])} bits"
    inputs = f" · inputs {row['activation']}" if row["activation"] else ""
    look = (
        f'<button type="button" class="vq-button vq-button-small" data-act="layer"'
        f' data-value="{name}" aria-label="Look inside {name}">Open</button>'
        if recorded
        else ""
    )
    cells = "".join(
        f'<td data-label="{label}">{cell}</td>'
        for label, cell in (
            ("Share", bar),
            ("Put back", gain),
            ("Alone", alone),
            ("Size", size(row["bytes"])),
            ("To 16 bits", f"+{size(row['sixteen_bit_bytes'])}"),
        )
    )
    return (
        f'<tr><th scope="row" title="{name}">{escape(row["brief"])}<small>{escape(how + inputs)}'
        f"</small></th>{cells}<td>{look}</td></tr>"
    )


def _with_error(value: float | None, error: float | None, places: int) -> str:
    """Decibels below each other: as many places in every row."""
    words = "∞" if value is None else f"{value:.{places}f} dB".replace("-", "−")
    return words if error is None else f"{words} <small>± {error:.{places}f}</small>"


def _signed(gain: float) -> str:
    return f"{'+' if gain > 0 else ''}{digits(gain)}"


def _share(row: BlamedLayer, area: str) -> float:
    scores: Any = row[_key(area)]
    return float((scores or {}).get("share") or 0.0)


def _key(area: str) -> Any:
    """The field of a layer with the scores of an area."""
    return area


def _place(offers: Sequence[Offer], look: BlameLook) -> int:
    """Where the set of repairs is that is looked at; -1 where none helps."""
    if 0 <= look.offer < len(offers):
        return look.offer
    return next((at for at, each in enumerate(offers) if each["proposed"]), -1)


def _figure(run: RunRecord, name: str, title: str, look: BlameLook, narrow: bool) -> str:
    area = area_of(result_of(run), look)
    svg, caption = _drawn(run.folder, run.finished or 0.0, name, area, narrow)
    files = "".join(
        f'<button type="button" class="vq-file" data-act="save" data-figure="{name}"'
        f' data-as="{kind}" aria-label="{escape(title)} as {kind.upper()}">{kind.upper()}</button>'
        for kind in FORMATS
    )
    return (
        f'<h3>{escape(title)}</h3><figure class="vq-figure" data-narrow="{str(narrow).lower()}">'
        f'<div class="vq-figure-body">{svg}</div><figcaption>{escape(caption)}</figcaption>'
        f'<div class="vq-files"><span>Save as</span>{files}</div></figure>'
    )


@lru_cache(maxsize=16)
def _drawn(folder: Path, stamp: float, name: str, area: str, narrow: bool) -> tuple[str, str]:
    """The figure as it stands in the page, and its caption; `stamp` says when it was finished."""
    del stamp
    view = _made(folder, name, area, PAGE.phone() if narrow else PAGE)
    with PEN:
        return view.svg(), view.caption


def _view(run: RunRecord, name: str, look: BlameLook, style: Style) -> View:
    return _made(run.folder, name, area_of(result_of(run), look), style)


def _made(folder: Path, name: str, area: str, style: Style) -> View:
    values: Any = read_json(folder / "result.json") or {}
    with PEN:
        if name == "repairs" and values.get("offers"):
            return views.repairs(values["offers"], style)
        if name != "steps":
            raise UserError(f'there is no figure "{name[:40]}".', where="blame")
        found = BlameReport.load(folder / values.get("report", "blame.npz"))
        return views.layer_steps(found, style, area=REGION if area == "region" else WHOLE)


def _picks(act: str, known: Sequence[tuple[str, str, str]], on: str, label: str) -> str:
    buttons = "".join(
        f'<button type="button" class="vq-pick" data-act="{act}" data-value="{name}"'
        f' title="{escape(tip or words)}" aria-pressed="{str(name == on).lower()}">'
        f"{escape(words)}</button>"
        for name, words, tip in known
    )
    return f'<div class="vq-picks" role="group" aria-label="{escape(label)}">{buttons}</div>'
