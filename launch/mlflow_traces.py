"""Traces of rollouts in MLflow, made of files of the run folder, so that live and later sending are the same.

MLflow's own tracing (`mlflow.start_span`) makes up trace ids and reports no failure. Here ids come from the run and the
rollout, what fails raises, and sending twice changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PREVIEW = 1000  # characters that MLflow's databases take
_TAG = 250
_PAGE = 500


class MlflowTraces:
    """The traces of one MLflow run. Calls block; errors are MLflow's own and the network's."""

    def __init__(self, uri: str, experiment_id: str, run_id: str) -> None:
        from mlflow.tracing.client import TracingClient

        self._client = TracingClient(uri)
        self._experiment_id = experiment_id
        self._run_id = run_id

    def send(self, path: Path, known: frozenset[str]) -> int:
        """Send the rows of a file but for those `known`; how many were sent.

        Args:
            path: JSONL of `TraceRow` with `step` and `attempt`.
        """
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        missing = [row for row in rows if _trace_id(self._run_id, row) not in known]
        for row in missing:
            trace = _Trace(self._run_id, row)
            self._send_spans(trace.spans())
            # Last: `known` finds a trace by its run, which stands here.
            self._client.start_trace(trace.info(self._experiment_id))
        return len(missing)

    def known(self) -> frozenset[str]:
        """Ids of the traces that the run has, whole."""
        found: list[str] = []
        token = None
        while True:
            page = self._client.search_traces(
                locations=[self._experiment_id],
                filter_string=f"metadata.`mlflow.sourceRun` = '{self._run_id}'",
                max_results=_PAGE,
                page_token=token,
                include_spans=False,
            )
            found += [trace.info.trace_id for trace in page]
            token = page.token
            if not token:
                return frozenset(found)

    def _send_spans(self, spans: Sequence[Any]) -> None:
        try:
            self._client.log_spans(self._experiment_id, spans)
        except NotImplementedError:
            # What MLflow (3.17) says of an old server, and of one that does not answer when it is asked for its
            # version; and it asks once in the life of a process.
            from mlflow.store.tracking.rest_store import RestStore

            RestStore._get_server_version.cache_clear()
            raise


class _Trace:
    """One row as MLflow's records: a root span `rollout` over task, generate, score and verdict."""

    def __init__(self, run_id: str, row: Mapping[str, Any]) -> None:
        self._run_id = run_id
        self._row = row
        self._rollout = row["rollout"]
        self._id = _trace_id(run_id, row)
        self._question = {"messages": row["messages"]}
        self._answer = {"role": "assistant", "content": self._rollout["completion"]}
        self._tokens = {
            "input_tokens": row["prompt_tokens"],
            "output_tokens": self._rollout["tokens"],
            "total_tokens": row["prompt_tokens"] + self._rollout["tokens"],
        }
        self._void = self._rollout["reward"] is None

    def spans(self) -> list[Any]:
        """`mlflow.entities.Span`s. Task and verdict are moments, generate and score take time."""
        row, rollout = self._row, self._rollout
        issued, generated, scored = row["issued_at"], row["generated_at"], row["scored_at"]
        judgement = {key: rollout[key] for key in ("reward", "status", "breakdown")}
        about = {"policy_version": rollout["policy_version"], "staleness": row["staleness"]}
        return [
            self._span("rollout", "CHAIN", issued, scored, self._question, self._answer | judgement, **about),
            self._span("task", "TASK", issued, issued, {"task_id": rollout["task_id"]}, {"answer": rollout["answer"]}),
            self._span(
                "generate",
                "LLM",
                issued,
                generated,
                self._question,
                {"choices": [{"message": self._answer}]},
                **about,
                newest_version=row["newest_version"],
                generator=row["generator"],
                group_generation_s=row["generation_s"],
                truncated=rollout["truncated"],
                **{"mlflow.chat.tokenUsage": self._tokens},
            ),
            self._span(
                "score",
                "EVALUATOR",
                generated,
                scored,
                {"verifier": row["verifier"], "completion": rollout["completion"]},
                rollout["details"],
                group_scoring_s=row["scoring_s"],
            ),
            self._span("verdict", "EVALUATOR", scored, scored, rollout["details"], judgement),
        ]

    def info(self, experiment_id: str) -> Any:
        """The `mlflow.entities.TraceInfo`, with reward and verdict as feedback."""
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        row = self._row
        return TraceInfo(
            trace_id=self._id,
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=round(row["issued_at"] * 1000),
            execution_duration=round((row["scored_at"] - row["issued_at"]) * 1000),
            state=TraceState.ERROR if self._void else TraceState.OK,
            request_preview=row["messages"][-1]["content"][:_PREVIEW],
            response_preview=self._rollout["completion"][:_PREVIEW],
            client_request_id=f"{self._rollout['group_id']}/{row['member']}",
            trace_metadata={
                "mlflow.sourceRun": self._run_id,
                "mlflow.trace.tokenUsage": json.dumps(self._tokens),
            },
            tags={"mlflow.traceName": "rollout", **self._tags()},
            assessments=self._feedback(),
        )

    def _tags(self) -> dict[str, str]:
        row, rollout = self._row, self._rollout
        tags = {
            "step": row["step"],
            "attempt": row["attempt"],
            "group_id": rollout["group_id"],
            "task_id": rollout["task_id"],
            "policy_version": rollout["policy_version"],
            "staleness": row["staleness"],
            "status": rollout["status"],
            "sandbox_outcome": rollout["details"].get("outcome"),
            "sandbox_level": rollout["details"].get("level"),
        }
        return {key: str(value)[:_TAG] for key, value in tags.items() if value not in (None, "")}

    def _feedback(self) -> list[Any]:
        from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback

        source = AssessmentSource(source_type=AssessmentSourceType.CODE, source_id=self._row["verifier"])
        said = {"verdict": self._rollout["status"], "reward": self._rollout["reward"]}
        feedback = []
        for name, value in said.items():
            if value is not None:  # a void completion has no reward
                one = Feedback(name=name, value=value, source=source, trace_id=self._id)
                one.assessment_id = f"a-{_digest(self._id, name)[:32]}"  # else each sending would add one
                feedback.append(one)
        return feedback

    def _span(
        self, name: str, kind: str, began: float, ended: float, inputs: Any, outputs: Any, **attributes: Any
    ) -> Any:
        from mlflow.entities import Span

        known = {key: value for key, value in attributes.items() if value is not None}
        known |= {
            "mlflow.traceRequestId": self._id,
            "mlflow.spanType": kind,
            "mlflow.spanInputs": inputs,
            "mlflow.spanOutputs": outputs,
        }
        failed = self._void and name in ("rollout", "score", "verdict")
        return Span.from_dict(
            {
                "trace_id": _base64(self._id.removeprefix("tr-")),
                "span_id": _base64(_digest(self._id, name)[:16]),
                "parent_span_id": "" if name == "rollout" else _base64(_digest(self._id, "rollout")[:16]),
                "name": name,
                "start_time_unix_nano": round(began * 1e9),
                "end_time_unix_nano": round(ended * 1e9),
                "events": [],
                "status": {"code": "STATUS_CODE_ERROR" if failed else "STATUS_CODE_OK", "message": ""},
                "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in known.items()},
            }
        )


def _trace_id(run_id: str, row: Mapping[str, Any]) -> str:
    """Always the same for a rollout of a run: group ids never repeat."""
    return f"tr-{_digest(run_id, row['rollout']['group_id'], str(row['member']))[:32]}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
