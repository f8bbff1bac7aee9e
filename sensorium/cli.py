"""The command line. Importing this module imports neither torch nor pydantic: each command imports what it needs.

Mistakes of a user (UserError) are one message on standard error and exit code 2; a failure of the program keeps its
traceback. With `--json` standard output holds JSON alone; progress goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sensorium.errors import UserError

app = typer.Typer(
    name="sensorium",
    help="Design, train, evaluate and talk to multimodal foundation models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Look at training data before it is trained on.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")

RECIPE = "A recipe's name (llava, llava-1.5, ...: see `sensorium systems`), or path/to/file.py:function."
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Size = Annotated[str | None, typer.Option(help="tiny (from scratch), small (real pretrained parts) or paper.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value, for example stages.align.lr=5e-4. Repeatable."),
]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="int8|int4", help="Weights of the language model in 8 or 4 bits; head and embedding in 8."),
]
DRAFT = "A smaller model with the same tokenizer, which guesses how answers go on: the same is said, sooner."
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/quickstart.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Design, train, evaluate and talk to multimodal foundation models."""
    if version:
        import sensorium

        print(sensorium.__version__)
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run is taken up again.")] = Path(
        "runs/quickstart"
    ),
    json: Json = False,
) -> None:
    """Fetch, train, evaluate and report a small LLaVA: about ten minutes on two cores."""
    from sensorium.commands.train import run_quickstart

    run_quickstart(out, json)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=RECIPE)],
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-SIZE.")] = None,
    size: Size = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Your own data in place of the recipe's: a file or folder. Repeat to mix several."),
    ] = None,
    set_: Overrides = None,
    stage: Annotated[list[str] | None, typer.Option(help="Train this stage alone. Repeatable.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of every stage.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Continue the run in --out, or insist on a new one.")
    ] = True,
    skip_bad_rows: Annotated[bool, typer.Option(help="Train without the rows of --data that cannot be used.")] = False,
    json: Json = False,
) -> None:
    """Train a recipe, on its own data or on yours. All mistakes are reported before training starts."""
    from sensorium.commands.train import Request, run_train

    run_train(
        Request(recipe, size, tuple(set_ or ()), tuple(data or ()), tuple(stage or ()), steps, seed, skip_bad_rows),
        out,
        resume=resume,
        json=json,
    )


@app.command("eval")
def evaluate(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run, or a published model; left out with --endpoint.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="A benchmark, FILE.jsonl of your own questions, FILE.toml. Repeatable."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="In place of the task's own: exact, vqa, choice, anls ...")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="The file or folder of a benchmark, as published. One for each.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "--n", min=1, help="Items of each task at most, drawn at random.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Answered questions before each one.")] = None,
    blind: Annotated[bool, typer.Option("--blind/--no-blind", help="Also with pictures of other items.")] = True,
    batch: Annotated[int | None, typer.Option(min=1, help="Answers under way together; changes no number.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of records and report. Default: RUN/evaluation.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Ask an OpenAI-compatible address.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="What the model is called there.")] = None,
    key_env: Annotated[str | None, typer.Option(metavar="VAR", help="Environment variable with its key.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions to an endpoint at once.")] = 8,
    judge: Annotated[str | None, typer.Option(metavar="RUN|URL", help="Who rates open answers.")] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="Its name, behind a URL.")] = None,
    judge_key_env: Annotated[str | None, typer.Option(metavar="VAR", help="Its key.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Take answers that were given before.")] = True,
    quantize: Quantize = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    json: Json = False,
) -> None:
    """Ask a model its recipe's evaluations, or tasks of your choice, each beside its blind control."""
    from sensorium.commands.evaluate import Evaluating, run_evaluate

    asked = Evaluating(
        run=run, tasks=tuple(task or ()), metric=metric, data=tuple(map(str, data or ())), limit=limit, shots=shots,
        blind=blind, batch=batch, out=out, endpoint=endpoint, model=model, key_env=key_env, concurrency=concurrency,
        judge=judge, judge_model=judge_model, judge_key_env=judge_key_env, cache=cache, quantize=quantize,
        device=device, json=json,
    )  # fmt: skip
    run_evaluate(asked)


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE [RECIPE ...]", help=RECIPE)],
    budget: Annotated[
        str, typer.Option(help="Of each design: 10m of training steps, 2000samples, or 1e15flops.")
    ] = "10m",
    size: Size = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Your own data for all of them: a file or folder. Repeat to mix several.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each design once for each: 0,1,2.")] = "0",
    vary: Annotated[
        str | None,
        typer.Option(metavar="PATH=a,b,c", help="Values of one field or part of one recipe, in place of recipes."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="Ask FILE.jsonl of your own questions, FILE.toml. Repeatable."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What reads the answers to --task: exact, vqa, choice ...")] = None,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; the same command goes on there.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a step, of all designs. Default: 16.")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Items of each task. Default: 300.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Train without the rows of --data that cannot be used.")] = False,
    json: Json = False,
) -> None:
    """Train designs on the same data, order, budget and language model; then one table and one plot."""
    from sensorium.commands.compare import Comparing, run_compare

    given = Comparing(
        tuple(recipes), budget, size, tuple(data or ()), seeds, vary, tuple(set_ or ()), batch, n, skip_bad_rows,
        tuple(task or ()), metric,
    )  # fmt: skip
    run_compare(given, out, json)


@app.command()
def chat(
    run: Run,
    image: Annotated[list[Path] | None, typer.Option(help="A picture for the first question. Repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest word each time.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    quantize: Quantize = None,
    draft: Annotated[Path | None, typer.Option(metavar="RUN", help=DRAFT)] = None,
    json: Json = False,
) -> None:
    """Talk to a trained model about pictures: one line is one turn. With --json one object for each turn."""
    from sensorium.commands.chat import run_chat

    sampling = {"temperature": temperature, "max_tokens": max_tokens}
    run_chat(run, [str(path) for path in image or ()], prompt, system, sampling, json, quantize, draft)


@app.command()
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [NAME=RUN ...]", help="Runs, or published models; NAME is what clients ask for."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that clients must give. Repeatable; also $SENSORIUM_API_KEYS.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Web pages of this origin may ask, https://example.org. Repeatable.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures by https address, of the public internet alone.")
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a limit (docs/serving.md): max_tokens=512. Repeatable."),
    ] = None,
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds for accepted requests, once told to end.")] = 30.0,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp32 or stored.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    ui: Annotated[bool, typer.Option("--ui", help="With the web page, at /ui.")] = False,
    quantize: Quantize = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help=f"{DRAFT} Of one of several models NAME=RUN. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Serve models behind the OpenAI interface: chat with pictures, completions, embeddings."""
    from sensorium.commands.serve import Serving, run_serve

    given = Serving(
        tuple(runs), host, port, tuple(api_key or ()), tuple(origin or ()), allow_urls, tuple(limit or ()), drain,
        precision, device, ui, quantize, tuple(draft or ()),
    )  # fmt: skip
    run_serve(given, json)


@app.command()
def ui(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN2]", help="Runs, or published models. Two stand side by side. Also NAME=RUN."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp32 or stored.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    json: Json = False,
) -> None:
    """Chat with models about pictures on a web page. The same as serve --ui, with fewer choices."""
    from sensorium.commands.ui import run_ui

    run_ui(tuple(runs), host, port, precision, device, json)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help=RECIPE)],
    size: Size = None,
    set_: Overrides = None,
    draw: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the architecture into this file.")] = None,
    json: Json = False,
) -> None:
    """Show what a recipe is before anything runs: parts, parameters, stages, tokens, FLOPs, memory, figures."""
    from sensorium.commands.show import run_show

    run_show(recipe, size, set_ or [], draw, json)


@app.command()
def systems(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/systems.md.")] = False,
    json: Json = False,
) -> None:
    """List the published systems that a recipe implements, and what shows that each works."""
    from sensorium.commands.show import run_systems

    run_systems(markdown, json)


@data.command()
def preview(
    source: Annotated[Path | None, typer.Argument(help="Your own data; without it, a stage's of the recipe.")] = None,
    recipe: Annotated[str, typer.Option(help=RECIPE)] = "llava",
    size: Size = None,
    stage: Annotated[str | None, typer.Option(help="The stage whose data is shown. Default: the last.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a page with the pictures to this file.")] = None,
    json: Json = False,
) -> None:
    """Show rows as they will be trained on: pictures, rendered text, and which tokens carry loss."""
    from sensorium.commands.data import run_preview

    run_preview(source, recipe, size, stage, rows, html, json)


@data.command()
def check(
    source: Annotated[Path, typer.Argument(help="A file or folder of data.")],
    json: Json = False,
) -> None:
    """Check every row and picture of your own data. Exit code 2 when a row cannot be used."""
    from sensorium.commands.data import run_check

    run_check(source, json)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pretrained parts, `stamps`, `wordnet`, or recipes (their parts). Without a name: list them."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fetch pretrained parts and data sets into the local cache; afterwards no network is needed."""
    from sensorium.commands.fetch import run_fetch

    run_fetch(names or [], json)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A run, one of its checkpoints, a published folder or hub id, an adapter, GGUF."),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write, or the GGUF file; not there yet.")],
    to: Annotated[
        str, typer.Option(help="hf, which transformers opens; peft, adapters alone; gguf, for llama.cpp.")
    ] = "hf",
    family: Annotated[str | None, typer.Option(help="Family of that layout; else the first that fits.")] = None,
    language: Annotated[bool, typer.Option("--language", help="Write the language model alone.")] = False,
    type: Annotated[str | None, typer.Option(help="gguf: f32, f16, bf16 or q8_0; else as the model has them.")] = None,
    json: Json = False,
) -> None:
    """Write a model in a published layout, so that other software opens it."""
    from sensorium.commands.convert import run_convert

    run_convert(source, out, to, family, json, language, type)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="decode, prefill, serving, memory, startup, loading, quantize, stages, claims.")
    ],
) -> None:
    """Measure this package beside others on the same weights; claims: test what surveys say. What follows the name is
    the benchmark's own: NAME --help."""
    from sensorium.commands.bench import run_bench

    raise typer.Exit(run_bench(name, context.args))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (default: this process's) and exit with its code."""
    try:
        app(None if arguments is None else list(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
