"""`sensorium data`, and the checks that `sensorium train` makes before it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from sensorium.commands.output import console_for, print_json
from sensorium.commands.show import resolve
from sensorium.data.formats import Report, check, open_data
from sensorium.data.source import RowError, Source, SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import Media, MediaError

DECODED = 2000  # pictures that are decoded in full before training; of larger sets so many, evenly spread


def check_source(source: SourceConfig, console: Console) -> Report:
    """Every row's structure, every picture's header, and the pixels of up to DECODED rows."""
    built = source.build()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking rows", total=len(built))
        report = check(built, progress=lambda done, total: bar.update(task, completed=done, total=total))
        known = {row for row, _ in report.problems}
        chosen = np.unique(np.linspace(0, len(built) - 1, min(len(built), DECODED)).astype(np.int64)).tolist()
        task = bar.add_task("decoding pictures", total=len(chosen))
        for row in chosen:
            bar.advance(task)
            reason = None if row in known else _damage(built, row)
            if reason is not None:
                report.bad += 1
                report.problems.append((row, reason))
    return report


def _damage(source: Source, row: int) -> str | None:
    """Why a picture of a row cannot be decoded; None when all can."""
    try:
        for segment in source[row].segments:
            if isinstance(segment.data, Media):
                segment.data.load()
    except (RowError, MediaError) as error:
        where = getattr(source, "where", None)
        place = f"{where(row)}: " if where is not None else f"row {row + 1}: "
        return str(error) if str(error).startswith(place) else place + str(error)
    return None


def run_check(path: Path, json: bool) -> None:
    console = console_for(json)
    source = open_data(path)
    report = check_source(source, Console(stderr=True))
    if json:
        print_json({"format": source.tag(), **report.to_dict()})
    else:
        console.print(f"{path}: {source.tag()}", markup=False, soft_wrap=True)
        console.print(report.summary(), markup=False, soft_wrap=True)
    if report.bad:
        raise UserError(f"{report.bad:,} of {report.checked:,} rows of {path} cannot be used")


def run_preview(
    path: Path | None, name: str, size: str | None, stage: str | None, count: int, html: Path | None, json: bool
) -> None:
    recipe = resolve(name, size, ())
    chosen = recipe.stages[-1] if stage is None else recipe.stage(stage)
    data = open_data(path) if path is not None else chosen.data
    if data is None:
        raise UserError(
            f"stage {chosen.name!r} of {recipe.name} at size {recipe.size} has no data: give a file or folder"
        )
    from sensorium.data.preview import preview_html, preview_json, preview_terminal
    from sensorium.render import Renderer
    from sensorium.train.build import tokenizer_of

    source = data.build()
    tokenizer = tokenizer_of(recipe)
    renderer = Renderer(tokenizer, recipe.template, recipe.model.plan)
    rows = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)).tolist():
        try:
            sample = source[index]
            rows.append((sample, renderer.render(sample, items=False)))
        except (RowError, MediaError) as error:
            raise UserError(f"{error}\n`sensorium data check` lists all rows that cannot be used") from error
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(preview_html(rows, tokenizer, f"{path or chosen.name} as {recipe.name} reads it"), "utf-8")
    if json:
        print_json(preview_json(rows, tokenizer))
    elif html is None:
        preview_terminal(rows, tokenizer, console_for(json))
    else:
        console_for(json).print(f"{len(rows)} rows written to {html}", markup=False, soft_wrap=True)
