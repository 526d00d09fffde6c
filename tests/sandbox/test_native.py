"""bash, C++ and JavaScript in a native slot."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from funicular.rewards.sandbox.slot import native
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole, missing_tool
from funicular.rewards.sandbox.types import JobReport, Level, Outcome
from tests.slots import QUICK, below, run_native, slot_of

_SUM = '#include <cstdio>\nint main() { long a, b; scanf("%ld %ld", &a, &b); printf("%ld\\n", a + b); }'


@pytest.fixture(scope="module")
def slot() -> Iterator[SlotProcess]:
    yield from slot_of(SlotRole.NATIVE, Level.L3, number=5)


@pytest.fixture(autouse=True)
def _tools(request: pytest.FixtureRequest) -> None:
    for language in ("bash", "cpp", "javascript"):
        if language in request.node.name and (missing := missing_tool(language)):
            pytest.skip(missing)


def _compile(slot: SlotProcess, source: str) -> JobReport:
    limits = replace(QUICK, cpu_s=20.0, memory_mib=1024, disk_mib=64)
    return slot.run(Job(kind=JobKind.COMPILE, source=source.encode(), limits=limits))


def test_bash_reads_pipes_and_prints(slot: SlotProcess) -> None:
    report = run_native(slot, "bash", "read a b; echo $((a + b)); seq 3 | sort -r; cat /dev/stdin", "1 2\n")

    assert (report.outcome, report.stdout) == (Outcome.OK, b"3\n3\n2\n1\n1 2\n")
    assert report.denied == {}


def test_bash_processes_end_with_the_job(slot: SlotProcess) -> None:
    report = run_native(slot, "bash", "(setsid sleep 60 &) ; (sleep 60 &) ; echo started")

    assert (report.outcome, report.stdout) == (Outcome.OK, b"started\n")
    assert len(below(slot.pid)) == 1


def test_a_bash_fork_bomb_leaves_no_process(slot: SlotProcess) -> None:
    run_native(slot, "bash", "bomb() { bomb | bomb & }; bomb; for ((i = 0; i < 99999; i++)); do :; done")

    assert len(below(slot.pid)) == 1
    assert run_native(slot, "bash", "echo unharmed | cat").stdout == b"unharmed\n"


def test_processor_time_of_all_bash_processes_counts(slot: SlotProcess) -> None:
    busy = "for i in 1 2 3 4; do while :; do :; done & done; wait"
    one_after_the_other = "while :; do (for ((i = 0; i < 3000; i++)); do :; done); done"

    for source in (busy, one_after_the_other):
        report = run_native(slot, "bash", source, limits=replace(QUICK, cpu_s=0.15))

        assert report.outcome is Outcome.CPU
        assert report.cpu_s < 2.0


def test_cpp_is_compiled_once_and_run_per_input(slot: SlotProcess) -> None:
    first = _compile(slot, _SUM)
    again = _compile(slot, _SUM)

    assert (first.outcome, again.outcome) == (Outcome.OK, Outcome.OK), first
    assert again.cpu_s == 0.0
    assert run_native(slot, "cpp", _SUM, "1 2").stdout == b"3\n"
    assert run_native(slot, "cpp", _SUM, "3 4").stdout == b"7\n"


def test_cpp_is_compiled_when_this_slot_has_not_done_it(slot: SlotProcess) -> None:
    assert run_native(slot, "cpp", _SUM + "\n", "5 6").stdout == b"11\n"


def test_cpp_errors_are_compile_errors(slot: SlotProcess) -> None:
    report = _compile(slot, "int main() { return missing; }")

    assert report.outcome is Outcome.COMPILE_ERROR
    assert b"missing" in report.stderr


def test_cpp_memory_threads_and_deep_recursion(slot: SlotProcess) -> None:
    threads = '#include <thread>\n#include <cstdio>\nint main() { std::thread t([] { puts("x"); }); t.join(); }'
    hungry = "#include <vector>\nint main() { std::vector<char> v; while (true) v.resize(v.size() + (1 << 20), 1); }"
    deep = """#include <cstdio>
int f(int n) { volatile char frame[64]; frame[0] = 1; return n ? f(n - 1) + frame[0] : 0; }
int main() { printf("%d\\n", f(500000)); }"""

    assert run_native(slot, "cpp", threads).stdout == b"x\n"
    assert run_native(slot, "cpp", deep).stdout == b"500000\n"
    assert run_native(slot, "cpp", hungry).outcome is Outcome.MEMORY


def test_no_cpp_program_finds_another_one(slot: SlotProcess) -> None:
    _compile(slot, _SUM)

    assert run_native(slot, "bash", "ls /build").outcome is not Outcome.OK
    assert run_native(slot, "bash", "echo /build/*").stdout == b"/build/*\n"


def test_javascript_reads_its_input(slot: SlotProcess) -> None:
    limits = replace(QUICK, memory_mib=512)
    for path in ("0", "'/dev/stdin'"):
        source = f"console.log(2 * Number(require('fs').readFileSync({path}, 'utf8')))"

        assert run_native(slot, "javascript", source, "21\n", limits).stdout == b"42\n"


def test_javascript_cannot_use_more_memory(slot: SlotProcess) -> None:
    source = "const a = []; while (true) a.push(Buffer.alloc(1 << 20, 1))"

    assert run_native(slot, "javascript", source).outcome is Outcome.MEMORY


def test_what_a_node_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_tool("python") is None
    monkeypatch.setattr(native, "tool", lambda language: None)
    assert "install the package g++" in str(missing_tool("cpp"))
    assert "cobol" in str(missing_tool("cobol"))
