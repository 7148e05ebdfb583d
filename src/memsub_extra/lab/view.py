"""The lab as ipywidgets: controls on the left, the effect of the edit on the right.

    Explorer(Lab(run))

One thread at a time computes, and a new request cancels earlier ones, so that all controls stay responsive.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from memsub.measure.exact import LEVEL
from memsub_extra.run.specs import EditSpec, Group

from ..notebooks.plots.layers import layer_label
from . import plots
from .session import Lab, label
from .still import FRAMES, Cell, Shown, still

SHOWN = 6
"""Captions whose images are shown at once."""
SIDE = 108
"""Side of an image in pixels of the page."""


@contextmanager
def _one_thread_fewer() -> Iterator[None]:
    """Within it, torch uses one thread fewer, if it has two or more.

    The notebook also has a thread. If there are more threads than cores, OpenMP's threads do not wait actively, and on
    two cores computations take twice as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Explorer(widgets.VBox):
    """Controls for captions and edit; shows images, verdicts, the weights by layer, detection and attack.

    Attributes:
        lab: the computations.
        spec: spec of the chosen edit; None if the sparsity is 0.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        self._running, self._stop = Thread(), Event()
        self._curves: dict[str, list[dict[str, Any]]] = {}
        self._make_controls()
        self._make_views()
        left = widgets.VBox([*self._controls, self._u], layout={"width": "360px", "min_width": "360px"})
        right = widgets.VBox([self.images, widgets.HBox([self.weights, self.scores]), self.curve])
        super().__init__([widgets.HBox([left, right]), self.status])
        self._choose_kind()
        what = (self.seeds, self.written, self.captions)
        for control in (*what, self.sparsity, self.tau, self.contrast, self.located_on):
            control.observe(self._refresh, "value")
        self.kind.observe(self._choose_kind, "value")
        self._refresh()

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        p, wide = self.lab.run.parameters, {"layout": {"width": "340px"}, "style": {"description_width": "84px"}}
        sparsity = p.spec.sparsity or 0.0
        self.kind = widgets.Dropdown(options=list(self.lab.captions), description="captions", **wide)
        self.captions = widgets.SelectMultiple(rows=6, description="", layout={"width": "340px"})
        self.written = widgets.Text(
            placeholder="a caption of yours, then Enter", continuous_update=False, description="yours", **wide
        )
        self.seeds = widgets.IntSlider(1, 1, 4, description="seeds", continuous_update=False, **wide)
        self.sparsity = widgets.SelectionSlider(
            options=[(f"{100 * s:g} %", s) for s in sorted({0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, sparsity})],
            value=sparsity,
            description="sparsity s",
            continuous_update=False,
            **wide,
        )
        self.tau = widgets.IntSlider(
            p.edit.steps, 1, p.grid_steps, description="steps τ", continuous_update=False, **wide
        )
        self.contrast = widgets.ToggleButtons(
            options=["empty", "ordinary"],
            description="contrast",
            tooltips=["against the empty prompt, as the paper does", "against ordinary prompts"],
            style={"description_width": "84px", "button_width": "110px"},
        )
        groups = [(str(group), group) for group in self.lab.groups]
        self.located_on = widgets.Dropdown(options=groups, value=Group.locating(), description="located on", **wide)
        self._make_buttons()
        self._controls = [
            self.kind,
            self.captions,
            self.written,
            self.seeds,
            self.sparsity,
            self.tau,
            self.contrast,
            self.located_on,
            widgets.HBox([self.attack, self.cancel]),
            widgets.HBox([self.file, self.save]),
            self.progress,
        ]

    def _make_buttons(self) -> None:
        attack = "the embedding attack on the first caption's training image"
        self.attack = widgets.Button(description="Attack", icon="bolt", tooltip=attack)
        self.cancel = widgets.Button(description="Cancel", icon="stop", disabled=True)
        self.file = widgets.Text("edit.safetensors", layout={"width": "190px"})
        self.save = widgets.Button(description="Save the edit", icon="save")
        self.progress = widgets.IntProgress(0, 0, 1, layout={"width": "340px"})
        self.attack.on_click(lambda _: self._submit(self._attack))
        self.cancel.on_click(lambda _: self._stop.set())
        self.save.on_click(lambda _: self._save())
        self._u = self._layer_buttons()

    def _layer_buttons(self) -> widgets.VBox:
        """The network as a U: down on the left, the middle at the bottom, up on the right; a click toggles a layer."""
        names = list(self.lab.run.denoiser.layers())
        self._chosen = set(names)
        small = {"width": "54px", "height": "26px", "padding": "0", "margin": "1px"}
        self.layers = {
            name: widgets.Button(description=layer_label(name), layout=small, style={"font_size": "11px"})
            for name in names
        }
        for name, button in self.layers.items():
            button.on_click(lambda _, name=name: self._toggle(name))
        rows = [widgets.HBox(line) for line in self._u_shape(names)]
        legend = widgets.HTML("<small>layers that are edited; darker: memorized sets share more of it</small>")
        return widgets.VBox([*rows, legend], layout={"align_items": "center"})

    def _u_shape(self, names: Sequence[str]) -> list[list[widgets.Widget]]:
        places = {name: plots.layer_place(name) for name in names}
        depth = max((row for side, row in places.values() if side != "mid"), default=0)
        lines: list[list[widgets.Widget]] = []
        for row in range(depth + 1):
            down, up = ([self.layers[n] for n in names if places[n] == (side, row)] for side in ("down", "up"))
            gap = widgets.Box(layout={"width": f"{12 + 20 * (depth - row)}px"})
            lines.append([*down, gap, *up])
        return [*lines, [self.layers[n] for n in names if places[n][0] == "mid"]]

    def _toggle(self, name: str) -> None:
        self._chosen ^= {name}
        self._refresh()

    def _choose_kind(self, _: Any = None) -> None:
        captions = list(dict.fromkeys(self.lab.captions[self.kind.value]))
        self.captions.options = [(c if len(c) < 60 else f"{c[:57]}...", c) for c in captions]
        self.captions.value = tuple(captions[:3])

    @property
    def spec(self) -> EditSpec | None:
        if not self.sparsity.value:
            return None
        names = list(self.layers)
        return self.lab.spec.changed(
            sparsity=self.sparsity.value,
            steps=self.tau.value,
            contrast=self.contrast.value,
            located_on=self.located_on.value,
            layers=None if self._chosen == set(names) else tuple(n for n in names if n in self._chosen),
        )

    @property
    def shown(self) -> list[str]:
        """Captions whose images are shown, first the one that the user wrote; raises ValueError if there is none."""
        written = [self.written.value.strip()] if self.written.value.strip() else []
        if not (captions := [*written, *self.captions.value][:SHOWN]):
            raise ValueError(f"no caption is chosen: choose one to {SHOWN}, or write one.")
        return captions

    # --- one thread, the newest request ------------------------------------------------------------------------------

    def _submit(self, job: Callable[[Event], None]) -> None:
        self._stop.set()
        self._stop = stop = Event()
        # A new thread for each request, because a thread that lives on keeps its OpenMP threads.
        self._running = Thread(target=self._run, args=(job, stop, self._running), name="lab", daemon=True)
        self._running.start()

    def _run(self, job: Callable[[Event], None], stop: Event, before: Thread) -> None:
        if before.is_alive():
            before.join()
        if stop.is_set():
            return
        self.cancel.disabled, self.progress.bar_style = False, "info"
        try:
            with _one_thread_fewer():
                job(stop)
            if stop.is_set():
                self._say("cancelled")
        except Exception as error:  # shown in the status line, because a thread has no cell
            self._say(f"<b style='color:{FRAMES[True]}'>{type(error).__name__}: {html.escape(str(error))}</b>")
        finally:
            self.cancel.disabled, self.progress.bar_style = True, ""
            self.progress.value = self.progress.max

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the requested views are shown; raises TimeoutError after `seconds`."""
        while (running := self._running).is_alive():
            running.join(seconds)
            if running.is_alive():
                raise TimeoutError(f"the lab still computes after {seconds} s: {self.status.value}")

    def _say(self, text: str) -> None:
        self.status.value = text

    # --- views ------------------------------------------------------------------------------------------------------

    def _make_views(self) -> None:
        self.images, self.status = widgets.HTML(), widgets.HTML()
        self.weights, self.scores, self.curve = (widgets.Image(format="png") for _ in range(3))
        self.curve.layout.display = "none"  # until an attack runs

    @contextmanager
    def _part(self, number: int, parts: int, name: str) -> Iterator[None]:
        self.progress.max, self.progress.value = parts, number
        self._say(name)
        yield
        self.progress.value = number + 1

    def _refresh(self, _: Any = None) -> None:
        self._submit(self._update)

    def _update(self, stop: Event) -> None:
        spec, captions, seeds = self.spec, self.shown, range(self.seeds.value)
        parts: list[tuple[str, Callable[[], None]]] = [
            ("images", lambda: self._show_images(captions, seeds, spec)),
            ("where the weights lie", lambda: self._show_weights(spec)),
            ("detection", lambda: self._show_scores(captions, spec)),
            ("overlap", lambda: self._colour_layers(spec)),
        ]
        for number, (name, show) in enumerate(parts):
            if stop.is_set():
                return
            with self._part(number, len(parts), name):
                show()
        self._say(self._status(spec))

    def _rows(self, captions: Sequence[str], seeds: Sequence[int], spec: EditSpec | None) -> dict[str, list[Cell]]:
        """Training images, and images of each seed before and after the edit: label to one cell for each caption."""
        rows: dict[str, list[Cell]] = {}
        references = [self.lab.reference(caption) for caption in captions]
        if any(r is not None for r in references):
            rows["training image"] = [Cell(r) for r in references]
        specs: dict[str, EditSpec | None] = {"before": None} | ({"after": spec} if spec else {})
        for name, each in specs.items():
            images = self.lab.images(captions, seeds, each)
            for k, seed in enumerate(seeds):
                verdicts = self.lab.verdicts(images[:, k], captions)
                cells = [Cell(images[i, k], *_verdict(verdicts.loc[i])) for i in range(len(captions))]
                rows[f"{name}, seed {seed}"] = cells
        return rows

    def _show_images(self, captions: Sequence[str], seeds: Sequence[int], spec: EditSpec | None) -> None:
        head = "".join(f"<th style='width:{SIDE}px;font-weight:normal'>{html.escape(c)}</th>" for c in captions)
        body = "".join(
            f"<tr><td style='text-align:right;padding-right:8px'>{name}</td>"
            + "".join(f"<td style='text-align:center;vertical-align:top'>{_html(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, cells in self._rows(captions, seeds, spec).items()
        )
        self.images.value = (
            f"<table style='font-size:11px;line-height:1.2'><tr style='vertical-align:bottom'><th></th>{head}</tr>"
            f"{body}</table>"
        )

    def _show_weights(self, spec: EditSpec | None) -> None:
        self.weights.value = _png(plots.layer_bars(self.lab.density(spec), "weights set to zero (%)"))

    def _show_scores(self, captions: Sequence[str], spec: EditSpec | None) -> None:
        self.scores.value = _png(plots.score_lines(self._scores(captions, spec), "text magnitude"))

    def _scores(self, captions: Sequence[str], spec: EditSpec | None) -> dict[str, np.ndarray]:
        """The detection score of the unedited model and, if there is an edit, of the pruned one."""
        specs = {"unedited": None} | ({"pruned": spec} if spec else {})
        return {name: self.lab.text_magnitude(captions, each) for name, each in specs.items()}

    def _colour_layers(self, spec: EditSpec | None) -> None:
        shared = self.lab.overlap(spec)
        tones = plots.layer_colours(shared, self._chosen)
        for name, button in self.layers.items():
            edited = name in self._chosen
            button.style.button_color, button.style.text_color = tones[name]
            left_out = "" if edited else "; left out"
            button.tooltip = f"{name}: sets of memorized prompts share {100 * shared[name]:.0f} %{left_out}"

    def still(self) -> Figure:
        """The current view as one figure, for pages without a kernel. It computes missing results."""
        spec, captions = self.spec, self.shown
        controls = {
            "captions": self.kind.value,
            "seeds": str(self.seeds.value),
            "sparsity s": f"{100 * self.sparsity.value:g} %",
            "steps τ": str(self.tau.value),
            "contrast": self.contrast.value,
            "located on": str(self.located_on.value),
        }
        return still(
            Shown(
                controls=controls,
                shared=self.lab.overlap(spec),
                edited=self._chosen,
                captions=captions,
                rows=self._rows(captions, range(self.seeds.value), spec),
                density=self.lab.density(spec),
                scores=self._scores(captions, spec),
                status=self._status(spec),
            )
        )

    def _status(self, spec: EditSpec | None) -> str:
        share = edit.density if (edit := self.lab.edit(spec)) else 0.0
        return f"{label(spec)}: {100 * share:.2f} % of the second feed-forward weights are zero"

    def _attack(self, stop: Event) -> None:
        spec, caption = self.spec, self.shown[0]
        iterations, seen = self.lab.run.parameters.embedding_attack.iterations, []
        self.progress.max = iterations
        for step in self.lab.attack(caption, spec, iterations=iterations):
            seen.append(step)
            self.progress.value = step["iteration"]
            self._curves[label(spec)] = seen
            done = f"{step['iteration']} of {iterations} iterations"
            self._say(f"{label(spec)}: {done}, similarity {step['similarity']:.2f}")
            threshold = self.lab.run.metrics.copy.threshold
            self.curve.layout.display = None
            self.curve.value = _png(plots.attack_lines(self._curves, threshold, caption))
            if stop.is_set():
                return

    def _save(self) -> None:
        edit = self.lab.edit(self.spec)
        if edit is None:
            self._say("nothing to save: the sparsity is 0.")
            return
        try:
            path = Path(self.file.value)
            edit.save(path)
            self._say(f"saved: {html.escape(str(path))} ({path.stat().st_size / 1e6:.2f} MB), {label(self.spec)}")
        except (OSError, ValueError) as error:
            self._say(f"<b style='color:{FRAMES[True]}'>not saved: {html.escape(str(error))}</b>")


def _verdict(row: pd.Series) -> tuple[str, bool | None]:
    """The line below an image, and whether it is a copy (None: there is no training image)."""
    if pd.isna(row["similarity"]):
        return "", None
    copy = bool(row["replicates"])
    if pd.isna(row["p"]):
        return f"{'copy' if copy else 'no copy'} ({row['similarity']:.2f})", copy
    level = f"1/{round(1 / LEVEL)}"
    return (f"training layout (p = {level})" if copy else f"other layout (p = {row['p']:.2g})"), copy


def _html(cell: Cell) -> str:
    if cell.image is None:
        return "–"
    frame = f"border:3px solid {FRAMES[cell.copy]};width:{SIDE}px;height:{SIDE}px"
    source = base64.b64encode(_encoded(cell.image)).decode()
    return f"<img src='data:image/png;base64,{source}' style='{frame}'><br><span>{cell.text}</span>"


def _encoded(image: np.ndarray) -> bytes:
    thumbnail, buffer = Image.fromarray(image), io.BytesIO()
    thumbnail.thumbnail((2 * SIDE, 2 * SIDE))
    thumbnail.save(buffer, "PNG")
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
