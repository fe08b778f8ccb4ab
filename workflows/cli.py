"""The command line. An error that the user can fix ends with one sentence on stderr and status 2."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from storage.errors import ArtifactError, UserError
from storage.manifest import require_manifest


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Runs a command; typer would turn Ctrl-C into a status without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort from error


app = typer.Typer(
    name="tesserec",
    cls=_Commands,
    help="From a catalogue of images and videos plus an interaction log to a served recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
adapt = typer.Typer(help="Adapt a model to a catalogue.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(adapt, name="adapt")
Workflow = Annotated[str, typer.Argument(help="YAML file of a workflow definition.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: a.b=c, any number of times.")]
Run = Annotated[str, typer.Argument(help="Run directory, a path or an fsspec URI.")]
RunDirOption = Annotated[str | None, typer.Option("--run-dir", help="Where the run lives; runs/NAME by default.")]
Address = Annotated[str, typer.Option(help="local, auto, or host:port of a Ray cluster.")]
Directory = Annotated[str, typer.Argument(help="Folder to write the catalogue to; it must be empty or new.")]


@app.command()
def sample(
    directory: Directory,
    items: Annotated[int, typer.Option(help="Items of the catalogue.")] = 800,
    users: Annotated[int, typer.Option(help="Users of the log.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    style: Annotated[str, typer.Option(help="How products are drawn: fill or line.")] = "fill",
) -> None:
    """Write the embedded catalogue: generated, deterministic, with known ground truth."""
    from workflows.catalogs.synthetic.sample import write_sample

    _written(directory, write_sample(directory, items=items, users=users, seed=seed, style=style))


@app.command("import")
def import_(
    source_name: Annotated[str, typer.Argument(metavar="NAME", help="movielens, fashion or amazon.")],
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder of the public data set.")],
    directory: Directory,
) -> None:
    """Turn a public data set into a canonical catalogue."""
    from workflows.catalogs.amazon import import_amazon
    from workflows.catalogs.fashion import import_fashion
    from workflows.catalogs.movielens import import_movielens

    importers = {"movielens": import_movielens, "fashion": import_fashion, "amazon": import_amazon}
    if source_name not in importers:
        raise UserError(f"There is no importer {source_name!r}: choose one of {', '.join(importers)}.")
    _written(directory, importers[source_name](source, directory))


@app.command()
def init(
    catalog: Annotated[str, typer.Argument(help="Folder or fsspec URI of a catalogue.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Definition to write; its name is the workflow's.")],
) -> None:
    """Look at a catalogue and write a definition that fits it."""
    from workflows.init import init as write_definition

    for line in write_definition(catalog, output):
        typer.echo(line)


@app.command()
def check(workflow: Workflow, set_: Overrides = None, run_dir: RunDirOption = None, address: Address = "local") -> None:
    """Find what is wrong with a workflow before it runs."""
    from workflows.distributed.cluster import nodes
    from workflows.engine.definition import load
    from workflows.engine.preflight import pools_shown, preflight

    definition = load(workflow, set_ or [])
    preflight(definition, _run_dir(definition.name, run_dir), address=address, tell=typer.echo)
    typer.echo(f"{definition.name}: {', '.join(definition.configs)}")
    for line in pools_shown(definition, nodes(address)):
        typer.echo(line)


@app.command()
def run(
    workflow: Workflow,
    set_: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it anew.")] = None,
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
    run_dir: RunDirOption = None,
    address: Address = "local",
) -> None:
    """Bring a run up to date with its definition: skip finished stages, resume a killed one."""
    from workflows.engine.definition import load
    from workflows.engine.runner import execute
    from workflows.engine.summary import summary

    definition = load(workflow, set_ or [])
    root = _run_dir(definition.name, run_dir)
    manifest = execute(definition, root, start=start, until=until, address=address)
    typer.echo(summary(manifest, root))


@app.command()
def update(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="The finished run to go on from; it is not written to.")],
    catalog: Annotated[str, typer.Option(help="The newer catalogue, or an export of the service.")],
    run_dir: Annotated[str | None, typer.Option("--run-dir", help="Where the next run lives; RUN-2, RUN-3, ….")] = None,
    set_: Overrides = None,
    address: Address = "local",
) -> None:
    """Make the next run from a run and newer data: no semantic ID moves, models go on, both runs' models are compared.

    Ends with status 0 to promote the next run, 3 to keep the old one, 4 to fit a run anew.
    """
    from workflows.engine.runner import execute
    from workflows.engine.summary import summary
    from workflows.engine.update import next_definition, next_root, status_of

    target = run_dir or next_root(run_)
    manifest = execute(next_definition(run_, catalog, target, set_ or []), target, address=address)
    typer.echo(summary(manifest, target))
    raise typer.Exit(status_of(manifest))


@adapt.command()
def captioner(
    catalog: Annotated[
        str, typer.Argument(help="Folder or fsspec URI of a catalogue whose items have pictures and texts.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Run directory for the captioner and its report.")],
    set_: Overrides = None,
    address: Address = "local",
) -> None:
    """Train a captioner on the pictures, titles and attributes of a catalogue's own items."""
    from storage import files
    from storage.run import RunDir
    from workflows.engine.definition import ADAPT_CAPTIONER, load
    from workflows.engine.runner import execute
    from workflows.engine.summary import summary

    definition = load(str(ADAPT_CAPTIONER), [f"catalog={json.dumps(catalog)}", *(set_ or [])])
    typer.echo(summary(execute(definition, output, address=address), output))
    weights = RunDir(files.absolute(output)).uri("models", "captioner")
    typer.echo(f"Use it: stages.interpret.caption: {{backend: qformer, weights: {weights}}}")


@app.command()
def show(run: Run, as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False) -> None:
    """Print the states, counts, speeds and metrics of a run."""
    from workflows.engine.summary import summary

    manifest = require_manifest(run)
    plain = {"run": run, **manifest.model_dump(exclude={"version"})}
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False) if as_json else summary(manifest, run))


@app.command()
def report(run: Run) -> None:
    """Write the HTML report of a run again and print its path."""
    from storage.run import RunDir
    from workflows.report import write_report

    require_manifest(run)
    typer.echo(write_report(RunDir(run)))


@app.command()
def sid(
    run: Run,
    items: Annotated[str, typer.Option(help="Items as Parquet, CSV or JSON Lines, with the columns of a catalogue's.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Parquet or JSON Lines file to write; stdout by default.")
    ] = None,
) -> None:
    """Give new items semantic IDs with the frozen models of a run; items that have one keep it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would break our own progress bar
    from workflows.engine.console import Reporter
    from workflows.sid import check_output, tokenize, write

    check_output(output)
    reporter = Reporter()
    with reporter.stage("sid") as progress:
        result = tokenize(run, items, progress)
    for line in result.lines():
        reporter.line(line)
    write(result.sids, output)


@app.command()
def load(
    run: Run,
    store: Annotated[str, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DATABASE.")],
    batch: Annotated[int, typer.Option(min=1, help="Users that are written at once.")] = 1_000,
) -> None:
    """Fill a store with the users of a run; what is in it already is skipped."""
    _fill(run, store, batch=batch)


@app.command()
def export(
    run: Run,
    store: Annotated[str, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DATABASE.")],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Folder to write the catalogue to; it must be empty or new.")
    ],
    minutes: Annotated[float, typer.Option(min=0, help="That a user has to act on an item shown.")] = 30,
) -> None:
    """Write the items and the log of a run, and what a store has kept since, as a catalogue."""
    from storage.run import RunDir
    from workflows.catalogs.export import export as write_export
    from workflows.engine.console import Reporter
    from workflows.engine.definition import definition_of

    reporter = Reporter()
    with reporter.stage("export") as progress:
        summary = write_export(run, store, output, minutes, definition_of(RunDir(run)).catalog, progress)
    for note in summary["notes"]:
        reporter.line(f"export: {note}")
    _written(output, summary)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    config: Annotated[str | None, typer.Option(help="YAML file of the service's settings.")] = None,
    address: Address = "local",
) -> None:
    """Serve a finished run on this machine until interrupted; fills the store of its users first."""
    from serving.local import check_port, here, serve_forever, served
    from serving.settings import check_servable, read_settings
    from serving.stores.opening import open_store
    from workflows.distributed.cluster import connected

    check_servable(run)
    settings = here(read_settings(run, config), host)
    check_port(host, port)
    open_store(settings.store, create=True).close()
    _fill_users(served(settings)[0], settings.store)
    with connected(address, cpus=settings.cpus):
        serve_forever(settings, host, port)


@app.command()
def roll(
    store: Annotated[str, typer.Option(help="Store of the service: sqlite:PATH or redis://HOST:PORT/DATABASE.")],
    run: Annotated[str | None, typer.Argument(help="Run directory to serve, a path or an fsspec URI.")] = None,
    share: Annotated[float | None, typer.Option(help="Share of the users who get it, beside the run of now.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="It answers, too, and nobody sees it.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Serve what was served before.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the replicas have to load it.")] = 600,
) -> None:
    """Serve another run, or go back, while the service answers; where the run is broken, nothing changes."""
    from serving.runs.rolling import roll as roll_to
    from serving.runs.rolling import roll_back

    if (run is None) != back or (back and (shadow or share is not None)) or (shadow and share is not None):
        raise UserError("Name a RUN to serve, with --share or --shadow or neither; or nothing else with --back.")
    if share is not None and not 0 < share < 1:
        raise UserError("--share is a number above 0 and below 1, such as 0.1; leave it out for all users.")
    if run is None:
        roll_back(store, typer.echo, wait=wait)
    else:
        fill = partial(_fill_users, run, store)
        roll_to(run, store, fill, typer.echo, share=share, shadow=shadow, wait=wait)


@app.command()
def build(
    run: Run,
    output: Annotated[str, typer.Option("-o", "--output", help="File to write.")] = "serve.yaml",
    config: Annotated[str | None, typer.Option(help="YAML file of the service's settings.")] = None,
) -> None:
    """Write the Ray Serve configuration of a finished run, for `serve deploy` or a RayService."""
    from serving.cascade import language_models
    from serving.settings import check_servable, read_settings, serve_config
    from storage import files
    from storage.run import RunDir

    check_servable(run)
    text = serve_config(read_settings(run, config), language_model=bool(language_models(RunDir(run))))
    files.write_bytes(output, text.encode())
    typer.echo(output)


@app.command()
def submit(
    address: Annotated[str, typer.Option(help="The cluster's dashboard, http://HEAD:8265.")],
    workflow: Annotated[str | None, typer.Argument(help="YAML file of a workflow definition.")] = None,
    set_: Overrides = None,
    run_dir: RunDirOption = None,
    wait: Annotated[bool, typer.Option(help="Follow the job's log until it ends; Ctrl-C ends only that.")] = True,
    env: Annotated[list[str] | None, typer.Option(help="Environment variable that the job gets from here.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop this job instead.")] = None,
) -> None:
    """Run a workflow as a Ray job, or follow the one at work; every node must reach catalogue and run directory."""
    from storage import files
    from workflows.distributed.jobs import stop_job, submit_run
    from workflows.engine.definition import dump, load

    if (workflow is None) == (stop is None):
        raise UserError("Name a WORKFLOW to submit, or a job to --stop.")
    if workflow is None:
        stop_job(str(stop), address)
        return
    definition = load(workflow, set_ or []).absolute()
    root = files.absolute(_run_dir(definition.name, run_dir))
    raise typer.Exit(submit_run(dump(definition), definition.catalog, root, address, wait=wait, env=env or ()))


def _fill_users(run: str, store: str) -> None:
    """Fills a store with the users of a run, if it has a log."""
    from storage.manifest import first_unfinished

    if first_unfinished(run, ("features",)) is None:  # else no user is known
        _fill(run, store, batch=1_000)


def _fill(run: str, store: str, *, batch: int) -> None:
    from workflows.engine.console import Reporter
    from workflows.load import load_users

    reporter = Reporter()
    with reporter.stage("load") as progress:
        loaded = load_users(run, store, batch, progress)
    for line in loaded.lines():
        reporter.line(line)


def main() -> None:
    """Runs `tesserec` and `python -m workflows`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a run's manifest says what became of it
    try:
        status = app(standalone_mode=False)
    except ArtifactError as error:
        _fail(f"{error.problem}: {_remedy(error.path)}.")
    except UserError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _fail(f"{error.format_message().rstrip('.')}: see `tesserec --help`.")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"The disk of {error.filename or 'a path of the command'} is full: make room there and run it again.")
        _fail(f"{error.strerror or error}: {error.filename or 'see the paths of the command'}.")
    except (KeyboardInterrupt, SystemExit, typer.Abort):  # Ray's own handlers exit
        command = "the same command" + (" without --from" if any(a.startswith("--from") for a in sys.argv) else "")
        print(f"Interrupted; {command} goes on from here.", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _remedy(path: str) -> str:
    """Says what writes a file or folder anew; a path with a run directory may be of another run than the command's."""
    from workflows.engine.registry import WRITTEN_BY

    root, _, name = path.rpartition("/")
    if name == "manifest.json":
        return f"start one with `tesserec run WORKFLOW --run-dir {root}`"
    for part, stage in WRITTEN_BY.items():
        root, within, _ = f"/{path}/".rpartition(f"/{part}/")
        if within:
            return f"run again with {f'--run-dir {root[1:]} ' if root else ''}--from {stage}"
    return "write it anew, or name another"


def _run_dir(name: str, given: str | None) -> str:
    return given or f"runs/{name}"


def _written(directory: str, summary: dict[str, Any]) -> None:
    events = f" and {summary['interactions']:,} interactions" if summary["interactions"] else ""
    typer.echo(f"{directory}: {summary['items']:,} items{events}; catalog.json there describes them.")


def _fail(sentence: str) -> None:
    print(f"tesserec: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
