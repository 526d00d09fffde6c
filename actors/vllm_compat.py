"""What vLLM 0.32 lacks or gets wrong, in one place; loaded in every engine worker through vLLM's own hooks.

* `register` is the `vllm.general_plugins` entry point: vLLM calls it in each of its processes.
* `ShmWeightTransferEngine` moves weights through shared memory: of vLLM's own engines none runs without GPUs.
* `WorkerExtension` (`worker_extension_cls`) adds methods to the workers that `collective_rpc` reaches by name.

Repairs, the first three each with a test in tests/integration/test_generator.py (look again when vLLM changes):

1. On CPU a tied output head keeps its old packed weights after an update, without an error (0.32.0; 0.56 nat off).
2. A failed update leaves half-received layers behind, to which a resend would add (0.32.0).
3. An update that was started and never finished can never be started again (0.32.0).
4. Every update warns that modules without weights of their own failed to load weights (0.32.0).
5. Without torchvision Qwen2.5-VL does not start, not even for images (0.32.0, transformers 5.19): `vllm_vision.py`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.models import ModelRegistry
from vllm.platforms import current_platform

from funicular.actors import vllm_cpu_kernels
from funicular.actors.adapter_slot import AdapterSlot
from funicular.actors.engine_tensors import embedding_weights, expected_tensors, observe
from funicular.actors.errors import BroadcastBroken
from funicular.actors.fingerprint import fingerprint
from funicular.actors.mappings import Mappings
from funicular.actors.placed_models import ROW_BY_ROW
from funicular.actors.weight_placement import Placement, can_place
from funicular.actors.weight_receiver import WeightReceiver

BACKEND = "funicular_shm"


def register() -> None:
    """Make backend and models known to this process. vLLM may call it more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)
    if find_spec("torchvision") is None:
        ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", "funicular.actors.vllm_vision:ImagesOnly")
    if current_platform.is_cpu():
        vllm_cpu_kernels.register()


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Which tensors stand in the bucket that was opened last."""

    tensors: list[Any]
    """(name, shape, dtype, offset in bytes, bytes, fingerprint) each."""


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads buckets that stand in files of shared memory, or that are broadcast to this worker: into place where
    `Placement` knows the model, else by vLLM.

    vLLM's loader keeps views of a bucket until a layer is complete; they keep the mapping alive. So the file may be
    unlinked as soon as `receive_weights` has returned, and may be written again only when the update has finished.
    """

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        # Repair 4: rotary embeddings and tied heads are sent nothing; `weight_check` sees what is really missing.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        self._bucket: torch.Tensor | None = None
        self._placement: Placement | None = None
        self._mappings = Mappings()
        self._hashing = ThreadPoolExecutor(1, "bucket hash")
        self._hashed_ahead: tuple[tuple[str, int, int], Future[int]] | None = None
        self._receiver: WeightReceiver | None = None
        self.received: list[str] = []
        self.adapter: AdapterSlot | None = None

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._bucket = None
        self.received = []
        if self._placement is None and can_place(self.model):
            self._placement = Placement(self.model)
        if self.adapter is not None:
            self.adapter.begin()
        if self._placement is not None:
            self._placement.begin()
        else:
            initialize_layerwise_reload(self.model)
            _forget_half_received_layers(self.model)

    def receive(self, address: tuple[str, int], member: int, members: int, sizes: list[int], seconds: float) -> None:
        """Get ready to receive the buckets that `take_bucket` asks for."""
        self._stop_receiving()
        self._receiver = WeightReceiver(address, member, members, sizes, self.device, seconds)

    def take_bucket(self) -> int | None:
        """Wait for the bucket that is broadcast next; its hash, if it is in the host's memory.

        Raises:
            BroadcastBroken: it does not come.
        """
        if self._receiver is None:
            raise BroadcastBroken("nothing is received")
        received = self._receiver.take()
        self._bucket = received.data
        return received.hash

    def _stop_receiving(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.stop()

    def difference(self, seen: int | None, published_hash: int, tensors: Sequence[Any]) -> str:
        """What is wrong with the bucket that was opened last, `seen` being its hash; empty: nothing."""
        if seen is not None:
            return "" if seen == published_hash else f"sees bytes that hash to {seen}, published {published_hash}"
        bucket = self._bucket
        if bucket is None:
            raise RuntimeError("a comparison before a bucket was opened")
        for (name, tensor), (*_, published) in zip(_views(bucket, tensors), tensors, strict=True):
            if (found := fingerprint(tensor)) != published:
                return f"sees {name} with the fingerprint {found}, published {published}"
        return ""

    def open_bucket(self, path: str, offset: int, nbytes: int, lasts: bool) -> int:
        """Map a bucket and return the xxh3_64 of its bytes as this worker sees them."""
        self._stop_receiving()  # that broadcast broke, or was another install's
        self._bucket = self._map(path, offset, nbytes, lasts)
        ahead, self._hashed_ahead = self._hashed_ahead, None
        if ahead is not None and ahead[0] == (path, offset, nbytes):
            return ahead[1].result()
        return _hash(self._bucket)

    def hash_ahead(self, place: Sequence[Any] | None) -> None:
        """Begin with the hash of the bucket that is opened next: another core does it while something else is done.

        Whatever was hashed ahead before is forgotten: other bytes may stand in the same place by now.

        Args:
            place: path, offset and bytes, a list after its way through vLLM's messages; None: there is nothing to hash.
        """
        self._hashed_ahead = None
        if place is not None:
            path, offset, nbytes = place
            hashing = self._hashing.submit(_hash, self._map(path, offset, nbytes, lasts=True))
            self._hashed_ahead = ((path, offset, nbytes), hashing)

    def _map(self, path: str, offset: int, nbytes: int, lasts: bool) -> torch.Tensor:
        mapping = self._mappings.map(path, lasts=lasts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not writable
            return torch.frombuffer(mapping, dtype=torch.uint8, count=nbytes, offset=offset)

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        bucket, self._bucket = self._bucket, None
        if bucket is None:
            raise RuntimeError("receive_weights before open_bucket")
        if self._placement is None:
            self.model.load_weights((name, view.to(self.device)) for name, view in _views(bucket, update_info.tensors))
        else:
            tensors = dict(_views(bucket, update_info.tensors))
            self._placement.put(tensors if self.adapter is None else self.adapter.take(tensors))
        self.received.extend(name for name, *_ in update_info.tensors)

    @property
    def packing_seconds(self) -> float:
        """Spent on packed copies since the update was started, as far as it can be told from loading."""
        return self._placement.packing_seconds if self._placement else 0.0

    def finish_weight_update(self) -> None:
        self._stop_receiving()
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if self._placement is not None:
            self._placement.finish()
        else:
            finalize_layerwise_reload(self.model, self.model_config)
            _repack_tied_head(self.model)

    def shutdown(self) -> None:
        self._stop_receiving()
        self._bucket = self._hashed_ahead = None
        self._hashing.shutdown()


def _hash(bucket: torch.Tensor) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(bucket.numpy().data)  # without the interpreter's lock


def _views(bucket: torch.Tensor, tensors: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape, dtype, offset, nbytes, _ in tensors:
        yield name, bucket[offset : offset + nbytes].view(getattr(torch, dtype)).view(shape)


def _forget_half_received_layers(model: torch.nn.Module) -> None:
    """Repair 2: drop what a failed update had buffered for layers that it did not complete."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights = []
        info.load_numel = 0


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Repair 1: the reload fills the shared parameter, but repacks it for the embedding only, not for the head."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    if not current_platform.is_cpu():
        return
    shared = embedding_weights(model)
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and id(module.weight) in shared:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class WorkerExtension:
    """Mixed into vLLM's worker class; every method is called by name through `collective_rpc`."""

    model_runner: Any
    weight_transfer_engine: Any
    vllm_config: Any
    rank: int
    _weight_update_active: bool
    start_weight_update: Callable[[], None]
    update_weights: Callable[[dict[str, Any]], None]
    finish_weight_update: Callable[[], None]

    def funicular_expected_tensors(self) -> list[tuple[str, list[int], str]]:
        """(Hugging Face name, whole shape, dtype) of every tensor that a weight set must hold."""
        return expected_tensors(self.model_runner.get_model(), self.vllm_config.model_config.dtype)

    def funicular_serve_adapter(self, rank: int, targets: list[str]) -> list[tuple[str, list[int], str]]:
        """Take an adapter besides, in every update from now on; (name, whole shape, dtype) of each of its tensors.

        Raises:
            ValueError: vLLM's own loader, which knows no adapted layers, would load this model.
        """
        model = self.model_runner.get_model()
        if not can_place(model):
            raise ValueError(
                f"weight_sync.lora: {type(model).__name__} cannot serve an adapter that is sent by itself; expected "
                f"one of {', '.join(sorted(ROW_BY_ROW))}. Set weight_sync.lora=merged"
            )
        adapter = AdapterSlot(self.model_runner.lora_manager, model, rank, targets)
        self.weight_transfer_engine.adapter = adapter
        return adapter.expected(self.vllm_config.model_config.dtype)

    def funicular_divide_logits(self, temperature: float) -> None:
        """Divide this worker's logits by a temperature from now on, those of prompt tokens too.

        vLLM applies a request's temperature to sampled tokens only: `prompt_logprobs` are raw in every mode (0.32.0).
        """
        model = self.model_runner.get_model()
        compute_logits = model.compute_logits

        def divided(*arguments: Any, **options: Any) -> torch.Tensor | None:
            logits = compute_logits(*arguments, **options)
            return None if logits is None else logits / temperature

        model.compute_logits = divided

    def funicular_expect(self, place: Sequence[Any] | None) -> None:
        """Begin to hash the bucket that an update will load first, if its place (path, offset, bytes) lasts."""
        self.weight_transfer_engine.hash_ahead(place)

    def funicular_receive(self, host: str, port: int, sizes: list[int], seconds: float) -> None:
        """Get ready to receive buckets of these sizes, which `funicular_load_bucket` then loads."""
        members = 1 + self.vllm_config.parallel_config.world_size
        self.weight_transfer_engine.receive((host, port), 1 + self.rank, members, sizes, seconds)

    def funicular_begin_update(self) -> None:
        """Repair 3: forget an update that was started and never finished; then start one."""
        if self._weight_update_active:
            self._weight_update_active = False
            self.weight_transfer_engine.reset_weight_update_target()
        self.start_weight_update()

    def funicular_load_bucket(
        self,
        path: str | None,
        offset: int,
        nbytes: int,
        lasts: bool,
        published_hash: int,
        tensors: list[Any],
        upcoming: Sequence[Any] | None,
    ) -> tuple[str, str, float, float, float]:
        """Compare a bucket with what was published and, if nothing is wrong with it, load its tensors.

        It answers, and does not raise, when a bucket did not come: after an error of one worker vLLM takes the answers
        of the others for those of the next call (0.32.0).

        Args:
            path: None: the bucket is the next one that is broadcast.
            upcoming: path, offset and bytes of the next one, if its place is known and lasts.

        Returns:
            Why it did not come; what is wrong with it; and three durations.
        """
        engine = self.weight_transfer_engine
        began = time.perf_counter()
        try:
            seen = engine.take_bucket() if path is None else engine.open_bucket(path, offset, nbytes, lasts)
        except BroadcastBroken as error:
            return str(error), "", 0.0, 0.0, 0.0
        wrong = engine.difference(seen, published_hash, tensors)
        hashed = time.perf_counter()
        packing = engine.packing_seconds
        engine.hash_ahead(upcoming)
        if not wrong:
            self.update_weights({"tensors": tensors})
        packing = engine.packing_seconds - packing
        return "", wrong, hashed - began, time.perf_counter() - hashed - packing, packing

    def funicular_finish_update(self) -> float:
        """Bring up to date what depends on several tensors; the seconds of it that went into packing."""
        packing = self.weight_transfer_engine.packing_seconds
        self.finish_weight_update()
        if self.weight_transfer_engine.adapter is not None:
            self.weight_transfer_engine.adapter.activate()  # vLLM has just removed the one of before
        return self.weight_transfer_engine.packing_seconds - packing

    def funicular_received(self) -> list[str]:
        """Names of the tensors loaded since the update was started."""
        return self.weight_transfer_engine.received

    def funicular_report(self, version: int, columns: int) -> list[tuple[str, str, str, int, int, int]]:
        """Fingerprints of what this worker uses: rows of `weight_check.Observation`'s fields."""
        rows = observe(self.model_runner.get_model(), self.vllm_config.model_config.dtype, version, columns)
        adapter = self.weight_transfer_engine.adapter
        return rows if adapter is None else [*rows, *adapter.observe()]
