"""A Ray cluster of several nodes on one machine: a network namespace, an address and a /tmp/ray for each node.

Needs root. Everything here is named by this process's id, and ends with it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

START_S = 180.0
"""Seconds within which a node of a loaded machine must have joined."""
_HEAD_PORT = 6379
_DASHBOARD_PORT = 8265


def unavailable() -> str | None:
    """Why this machine cannot have network namespaces; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"fn-try-{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "exec", name, "unshare", "--mount", "true")
        _run("ip", "link", "add", f"fb{os.getpid()}", "type", "bridge")
        _run("ip", "link", "del", f"fb{os.getpid()}")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30, check=False)
    return None


@dataclass
class Cluster:
    """A head and further nodes, which this machine reaches by their addresses."""

    folder: Path
    """Logs of the nodes, and what each has as /tmp/ray."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    _namespaces: list[str] = field(default_factory=list)
    _commands: dict[str, list[str]] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def subnet(self) -> str:
        """The first three numbers of its addresses."""
        return f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to."""
        return f"http://{self.subnet}.1:{_DASHBOARD_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user of the cluster has in the environment."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**mine, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def namespace(self, node: str) -> str:
        """Its network namespace."""
        return f"fn{os.getpid()}-{node}"

    def add(self, node: str, cpus: int, resources: Mapping[str, int]) -> None:
        """Start a node; the first is the head. Others can be added once it answers."""
        number = len(self._commands) + 1
        name, link = self.namespace(node), f"fv{os.getpid()}-{number}"
        address = f"{self.subnet}.{number}"
        _run("ip", "netns", "add", name)
        self._namespaces.append(node)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", link, "master", self.bridge, "up")
        for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", name, *words.split())
        head = [f"--port={_HEAD_PORT}", f"--dashboard-host={address}", f"--dashboard-port={_DASHBOARD_PORT}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}"]
        ray += ["--head", *head] if number == 1 else [f"--address={self.subnet}.1:{_HEAD_PORT}"]
        ray += [f"--num-cpus={cpus}", "--num-gpus=0", f"--resources={json.dumps(resources)}"]
        ray += [f"--object-store-memory={200 << 20}", "--disable-usage-stats"]
        (self.folder / node).mkdir()
        # As on a machine of its own: the same path, other files.
        mount = 'mount --bind "$1" /tmp/ray && shift && exec "$@"'
        Path("/tmp/ray").mkdir(exist_ok=True)
        inside = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", mount, "sh"]
        self._commands[node] = [*inside, str(self.folder / node), *ray]
        self._start(node)

    def wait(self) -> None:
        """Until all nodes have joined. One that gives up is started again: Ray allows a node 30 s, which is short on a
        machine that does much else."""
        limit = time.monotonic() + START_S
        while self._joined() < len(self._commands):
            for node, process in self._processes.items():
                if process.poll() is not None:
                    self._start(node)
            if time.monotonic() > limit:
                raise TimeoutError(
                    f"{self._joined()} of {len(self._commands)} nodes within {START_S:.0f} s: {self.logs()}"
                )
            time.sleep(0.5)

    def logs(self) -> str:
        """The end of what each node printed."""
        texts = {node: (self.folder / f"{node}.log").read_text(errors="replace") for node in self._commands}
        return "\n".join(f"== {node}\n{text[-2000:]}" for node, text in texts.items())

    def pids(self, node: str) -> list[int]:
        """All processes of a node."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.namespace(node)], capture_output=True, text=True, timeout=30, check=True
        )
        return [int(pid) for pid in done.stdout.split()]

    def kill(self, node: str) -> None:
        """As when the power fails."""
        while pids := self.pids(node):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)

    @property
    def bridge(self) -> str:
        """What joins the namespaces."""
        return f"fb{os.getpid()}"

    def close(self) -> None:
        """Kill all nodes and remove what they stood in."""
        for node in self._namespaces:
            self.kill(node)
            if node in self._processes:
                self._processes[node].wait(timeout=30)
            _run("ip", "netns", "del", self.namespace(node))

    def _start(self, node: str) -> None:
        self.kill(node)
        with (self.folder / f"{node}.log").open("ab") as log:
            self._processes[node] = subprocess.Popen(self._commands[node], env=self.environment, stdout=log, stderr=log)

    def _joined(self) -> int:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = requests.get(f"{self.dashboard}/nodes?view=summary", headers=headers, timeout=10)
            answer.raise_for_status()
        except requests.RequestException:  # the head is still starting
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in answer.json()["data"]["summary"])


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """An empty one; all its nodes are killed at the end."""
    made = Cluster(folder)
    _run("ip", "link", "add", made.bridge, "type", "bridge")
    try:
        _run("ip", "addr", "add", f"{made.subnet}.254/24", "dev", made.bridge)
        _run("ip", "link", "set", made.bridge, "up")
        yield made
    finally:
        made.close()
        _run("ip", "link", "del", made.bridge)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=30, check=True)
