"""Weights of a model folder, published as a learner's are: for generators where nothing is learnt.

Manifest, fingerprints and the canary are those of a run (docs/weight_sync.md): the canary's log-probabilities come from
transformers, and a generator serves the folder's weights only after its own agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError

from funicular.actors.config import WeightSyncConfig
from funicular.actors.errors import RunStopped, first_line
from funicular.actors.learners import drain
from funicular.actors.weights import Manifest, PublishedWeights, assemble
from funicular.cluster.calls import call

if TYPE_CHECKING:
    import numpy as np

_ANSWER_DEADLINE_S = 60.0


class FolderWeights:
    """Loads the model into the host's memory, in the type that generators serve.

    Args:
        model_folder: a Hugging Face folder.
        dtype: the generators' type.
    """

    def __init__(self, model_folder: str, *, dtype: str) -> None:
        self._model_folder = Path(model_folder)
        self._dtype = dtype
        self._policy: Any = None

    def pack_weights(
        self, version: int, bucket_bytes: int, columns: int, canary_tokens: int
    ) -> Iterator[np.ndarray | Manifest]:
        """Yield one (nbytes,) uint8 array per bucket, then the manifest.

        Raises:
            ValueError: the model is not supported.
        """
        import torch

        from funicular.actors import weight_packing
        from funicular.actors.canary import canary_of, special_tokens
        from funicular.actors.policy import PolicyModel, load_causal_lm

        dtype = getattr(torch, self._dtype)
        if self._policy is None:
            self._policy = PolicyModel(load_causal_lm(self._model_folder, dtype), compute_dtype=dtype)
        causal_lm = self._policy.causal_lm
        yield from weight_packing.pack(
            weight_packing.weights_of(causal_lm),
            version=version,
            dtype=dtype,
            bucket_bytes=bucket_bytes,
            columns=columns,
            canary=lambda: canary_of(
                self._policy,
                canary_tokens,
                vocabulary=causal_lm.config.get_text_config().vocab_size,
                special=special_tokens(self._model_folder),
                device=torch.device("cpu"),
                packed=False,
            ),
            packs=True,
        )


class FolderSource:
    """The `WeightSource` of a folder: has an actor pack it, whenever it is asked.

    Args:
        actor: of `folder_weights_actor`.
        deadline_s: seconds within which the folder must have been loaded and packed.
    """

    def __init__(self, actor: Any, sync: WeightSyncConfig, *, deadline_s: float) -> None:
        self._actor = actor
        self._sync = sync
        self._deadline_s = deadline_s

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        """Pack the folder's weights; `base` is not looked at, because every version is the same.

        Raises:
            RunStopped: the actor died.
            ValueError: the model is not supported.
        """
        arguments = (version, self._sync.bucket_mib << 20, self._sync.columns, self._sync.canary_tokens)
        stream = self._actor.pack_weights.options(num_returns="streaming").remote(*arguments)
        what = "the model folder's weights to be packed"
        try:
            refs = await call(drain(stream), deadline_s=self._deadline_s, what=what)
            manifest = await call(refs[-1], deadline_s=_ANSWER_DEADLINE_S, what=what)
        except RayActorError as error:
            raise RunStopped(f"waiting for {what}: {first_line(error)}") from error
        return assemble(manifest, refs[:-1])


def folder_weights_actor() -> Any:
    """The Ray actor class around `FolderWeights`; the caller gives resources with `.options`."""
    import ray

    return ray.remote(max_restarts=0, max_task_retries=0)(FolderWeights)
