"""What `funicular k8s render` takes besides a recipe. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from funicular.launch.option_types import at_least, namespace, pinned_image

FOLDER = Path(__file__).resolve().parents[1] / "k8s"
"""The manifests: beside `launch/` in a checkout, and in the wheel."""
LONG_LIVED = "raycluster"
POD_DATA = "/data"
"""Where pods have the volume that they share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """What the cluster looks like, which no recipe says."""

    overlays: tuple[str, ...] = ()
    image: str | None = None
    """Of the head, the GPU pods and the submitter; None: the base's."""
    sandbox_image: str | None = None
    namespace: str = "funicular"
    gpus_per_pod: int = 8
    """At most."""
    cpus_per_gpu: int = 8
    memory_gib_per_gpu: int = 64
    """A quarter of it is /dev/shm."""
    sandbox_pods: int | None = None
    """None: two where the recipe's verifier judges code, else none."""
    sandbox_cpus: int = 16
    output: Path | None = None
    """None: standard output."""


def overlay_names() -> list[str]:
    """Overlays that there are."""
    return sorted(path.name for path in (FOLDER / "overlays").iterdir() if path.is_dir())


def add_k8s(commands: argparse._SubParsersAction, takes_recipes: Callable[..., None]) -> None:
    """Add the command to a parser."""
    k8s = commands.add_parser("k8s", help="a run on Kubernetes")
    k8s_commands = k8s.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    parser = k8s_commands.add_parser(
        "render", help="manifests whose counts are the recipe's, for kubectl apply -f", allow_abbrev=False
    )
    takes_recipes(parser, "[--overlay NAME ...] [--output FILE]")
    base = RenderOptions()
    parser.add_argument("--overlay", action="append", default=[], choices=overlay_names(), help="repeat to combine")
    images = {"--image": "image of head and GPU pods", "--sandbox-image": "image of sandbox pods"}
    for name, text in images.items():
        shown = f"{text}, with a tag or digest (default: the base's)"
        parser.add_argument(name, type=pinned_image, metavar="IMAGE", help=shown)
    parser.add_argument(
        "--namespace", type=namespace, metavar="NAME", default=base.namespace, help=f"default: {base.namespace}"
    )
    numbers = {
        "--gpus-per-pod": (1, base.gpus_per_pod, "GPUs of one pod, at most"),
        "--cpus-per-gpu": (1, base.cpus_per_gpu, "CPUs of a pod for each of its GPUs"),
        "--memory-gib-per-gpu": (4, base.memory_gib_per_gpu, "memory likewise; a quarter of it is /dev/shm"),
        "--sandbox-cpus": (1, base.sandbox_cpus, "CPUs of a sandbox pod"),
    }
    for name, (least, default, text) in numbers.items():
        shown = f"{text} (default: {default})"
        parser.add_argument(name, type=at_least(least), metavar="N", default=default, help=shown)
    parser.add_argument(
        "--sandbox-pods", type=at_least(0), metavar="N", help="default: 2 where the verifier judges code, else none"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here (default: standard output)")


def render_options(options: argparse.Namespace) -> RenderOptions:
    """From the command line."""
    return RenderOptions(
        overlays=tuple(options.overlay),
        image=options.image,
        sandbox_image=options.sandbox_image,
        namespace=options.namespace,
        gpus_per_pod=options.gpus_per_pod,
        cpus_per_gpu=options.cpus_per_gpu,
        memory_gib_per_gpu=options.memory_gib_per_gpu,
        sandbox_pods=options.sandbox_pods,
        sandbox_cpus=options.sandbox_cpus,
        output=options.output,
    )
