"""The command line. Everything heavy is imported inside the branch that needs it, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from funicular.launch.bench_options import add_bench
from funicular.launch.eval_options import add_eval, eval_options
from funicular.launch.export_options import add_export, export_options
from funicular.launch.k8s_options import POD_DATA, add_k8s, render_options
from funicular.launch.plan_options import add_plan, plan_options
from funicular.launch.serve_options import add_serve, serve_options
from funicular.launch.submit_options import (
    ANYWHERE,
    add_job_commands,
    add_submit,
    refuse_followed_json,
    submit_options,
)
from funicular.launch.verify_options import add_verify, verify_options

if TYPE_CHECKING:
    from funicular.launch.recipe import LoadedRecipe

_COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (),
    "submit": (),
    "status": (),
    "logs": (),
    "stop": (),
    "score": (),
    "eval": (),
    "export": (),
    "serve": (),
    "plan": (),
    "doctor": (),
    "verify": ("loss",),
    "config": ("keys", "show"),
    "metrics": ("sync",),
    "sandbox": ("probe",),
    "bench": ("generate", "sync"),
    "k8s": ("render",),
}
_WITH_OVERRIDES = (
    "train",
    "submit",
    "score",
    "eval",
    "plan",
    "doctor",
    "verify loss",
    "config show",
    "bench generate",
    "bench sync",
    "k8s render",
)
USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for wrong input, or what training ended with."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; what Python flushes when it ends must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if complaint := _unknown_command(words):
        print(complaint, file=sys.stderr)
        return USAGE_ERROR
    parser = _parser()
    further: list[str] = []
    if words[:1] == ["serve"] and "--" in words:
        cut = words.index("--")
        words, further = words[:cut], words[cut + 1 :]
    # key=value may stand between -c options, which argparse allows only for words that it does not know
    options, rest = parser.parse_known_args(words)
    command = " ".join(part for part in (options.command, getattr(options, "subcommand", None)) if part)
    if rest and command not in _WITH_OVERRIDES:
        parser.error(f"unexpected: {' '.join(rest)}")
    if options.version:
        from importlib.metadata import version

        print(f"funicular {version('funicular')}")
        return 0
    if command == "train":
        return _train(options.recipes, rest)
    if command == "submit":
        return _submit(options, rest)
    if command in ("status", "logs", "stop"):
        return _job_command(options)
    if command == "score":
        return _score(options.recipes, rest, options.output)
    if command == "eval":
        return _eval(options, rest)
    if command == "export":
        from funicular.launch.export import export

        return export(export_options(options))
    if command == "serve":
        from funicular.launch.serve import serve

        return serve(serve_options(options, further))
    if command == "plan":
        return _plan(options, rest)
    if command == "doctor":
        return _doctor(options, rest)
    if command == "verify loss":
        return _verify_loss(options, rest)
    if command == "k8s render":
        return _k8s_render(options, rest)
    if command == "config show":
        return _config_show(options.recipes, rest)
    if command == "config keys":
        return _config_keys(options)
    if command == "metrics sync":
        from funicular.launch.metrics_sync import sync_run

        return sync_run(options.run_dir)
    if command == "sandbox probe":
        from funicular.launch.sandbox_probe import print_probe

        return print_probe()
    if command == "bench sync":
        return _bench_sync(options.recipes, rest, options.versions)
    if command == "bench generate":
        return _bench_generate(options, rest)
    parser.print_help()
    return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="funicular",
        description="Distributed RL training for language models on Ray.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser("train", help="train as a recipe says", allow_abbrev=False)
    _takes_recipes(train)
    add_submit(commands, _takes_recipes)
    add_job_commands(commands)

    score = commands.add_parser("score", help="score a file of completions as a recipe says", allow_abbrev=False)
    _takes_recipes(score, "COMPLETIONS.jsonl [--output FILE]")
    score.add_argument("--output", type=Path, metavar="FILE", help="write the verdicts here, one JSON object a line")

    add_eval(commands, _takes_recipes)
    add_export(commands)
    add_serve(commands)
    add_plan(commands, _takes_recipes)
    doctor = commands.add_parser("doctor", help="what would keep a recipe from running here", allow_abbrev=False)
    _takes_recipes(doctor)
    add_verify(commands, _takes_recipes)
    add_k8s(commands, _takes_recipes)

    config = commands.add_parser("config", help="what recipes may say, and what one says")
    config_commands = config.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    keys = config_commands.add_parser("keys", help="every key, its type, default and meaning")
    wanted = keys.add_mutually_exclusive_group()
    wanted.add_argument("filter", nargs="?", default="", help="only keys whose name or meaning contains this")
    wanted.add_argument("--markdown", action="store_true", help="all of them, as the documentation has them")
    show = config_commands.add_parser("show", help="a whole resolved recipe, checked", allow_abbrev=False)
    _takes_recipes(show)

    metrics = commands.add_parser("metrics", help="a run's metrics")
    metrics_commands = metrics.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    sync = metrics_commands.add_parser("sync", help="send to MLflow what it does not have of a run")
    sync.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run folder")

    sandbox = commands.add_parser("sandbox", help="where untrusted code runs")
    sandbox_commands = sandbox.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    sandbox_commands.add_parser("probe", help="the isolation level that this machine reaches, and why no higher")

    add_bench(commands, _takes_recipes)
    return parser


def _takes_recipes(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.usage = " ".join(f"{parser.prog} -c RECIPE [-c RECIPE ...] {more} [key=value ...]".split())
    parser.epilog = (
        "key=value overrides a recipe: max_steps=50 algorithm.beta=0.04 algorithm.delta=null. "
        "`funicular config keys` lists all keys."
    )
    parser.add_argument(
        "-c",
        dest="recipes",
        action="append",
        default=[],
        metavar="RECIPE",
        help="a recipe file, or the name of a packaged recipe; repeat to compose, later ones win",
    )


def _unknown_command(words: Sequence[str]) -> str | None:
    """The complaint about a mistyped command or subcommand, with the nearest; argparse suggests none."""
    known = tuple(_COMMANDS)
    path = "funicular"
    for word in words[:2]:
        if word.startswith("-") or not known:
            return None
        if word not in known:
            near = get_close_matches(word, known, n=1)
            hint = f" Did you mean `{path} {near[0]}`?" if near else ""
            return f"{path}: there is no command {word}; there is {', '.join(known)}.{hint}"
        path = f"{path} {word}"
        known = _COMMANDS.get(word, ())
    return None


def _config_keys(options: argparse.Namespace) -> int:
    if options.markdown:
        from funicular.launch.key_page import key_page

        print(key_page(), end="")
        return 0
    from funicular.launch.key_table import print_keys

    return print_keys(options.filter)


def _load(recipes: Sequence[str], overrides: Sequence[str], *, elsewhere: str | None = None) -> LoadedRecipe | None:
    """The recipe, its warnings printed; None when it is wrong, which is printed too."""
    from funicular.launch.problems import RecipeError
    from funicular.launch.recipe import load_recipe

    try:
        loaded = load_recipe(recipes, overrides, elsewhere=elsewhere)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return None
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return loaded


def _train(recipes: Sequence[str], overrides: Sequence[str]) -> int:
    loaded = _load(recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.train import train

    return train(loaded)


def _submit(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    try:
        how = submit_options(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    loaded = _load(options.recipes, overrides, elsewhere=ANYWHERE)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.ray_token import use_token

    use_token()
    from funicular.launch.submit import submit

    return submit(loaded, options.recipes, overrides, how)


def _job_command(options: argparse.Namespace) -> int:
    try:
        refuse_followed_json(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    from funicular.launch.ray_token import use_token

    use_token()
    from funicular.launch.job_commands import logs, status, stop

    if options.command == "logs":
        return logs(options.address, options.job, until_end=options.follow, as_json=options.as_json)
    command = status if options.command == "status" else stop
    return command(options.address, options.job, as_json=options.as_json)


def _score(recipes: Sequence[str], words: Sequence[str], output: Path | None) -> int:
    # argparse would take the first word for the file, wherever overrides stand
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    files = [word for word in words if word not in overrides]
    if len(files) != 1 or files[0].startswith("-"):
        given = f"got {' '.join(files)}" if files else "got none"
        print(f"funicular score: expected one file of completions, {given}; see --help", file=sys.stderr)
        return USAGE_ERROR
    loaded = _load(recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.score import score

    return score(loaded, Path(files[0]), output)


def _eval(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    chosen = eval_options(options)
    if chosen.model is not None:
        from funicular.launch.model_folders import model_override

        try:
            overrides = [*overrides, model_override(chosen.model)]
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE_ERROR
    loaded = _load(options.recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.eval_model import eval_model

    return eval_model(loaded, chosen)


def _plan(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    loaded = _load(options.recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.plan import plan

    return plan(loaded, plan_options(options))


def _doctor(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    loaded = _load(options.recipes or ["embedded"], overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.doctor import doctor

    return doctor(loaded)


def _verify_loss(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    loaded = _load(options.recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.verify_loss import verify_loss

    return verify_loss(loaded, verify_options(options))


def _bench_sync(recipes: Sequence[str], overrides: Sequence[str], versions: int) -> int:
    loaded = _load(recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.bench_sync import bench_sync

    return bench_sync(loaded, versions)


def _k8s_render(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    loaded = _load(options.recipes, overrides, elsewhere=POD_DATA)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.k8s_render import k8s_render

    return k8s_render(loaded, render_options(options))


def _bench_generate(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    loaded = _load(options.recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    from funicular.launch.bench_generate import bench_generate

    return bench_generate(loaded, options.rounds, options.tokens, options.json_file)


def _config_show(recipes: Sequence[str], overrides: Sequence[str]) -> int:
    loaded = _load(recipes, overrides)
    if loaded is None:
        return USAGE_ERROR
    print(f"# from {', '.join(loaded.sources)}")
    print(loaded.text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
