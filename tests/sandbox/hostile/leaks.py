"""Programs that steal: the expected output, the host's secrets, other jobs' texts. Each prints what it finds."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TesterStyle, TestSet
from tests.sandbox.programs import (
    BAIT_SHM_KEY,
    BAIT_VARIABLE,
    DOUBLE,
    PEER_PATTERN,
    ROOMY,
    SECRET,
    SECRET_PATTERN,
    TELL_SECRET,
    HostileProgram,
    attack,
    calls,
    code,
    hauling,
    judged_by,
    stdio,
    theft,
)

_WRONG = frozenset({Outcome.WRONG})
_EMPTY_HANDED = frozenset({Outcome.WRONG, Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})
_TELL_BY_CALL = calls(((1,), SECRET), ((2,), SECRET))
_TELL_BY_CHECK = judged_by(
    TesterStyle.HUMANEVAL, f"def check(candidate):\n    assert candidate(1) == {SECRET!r}\n", entry_point="solve"
)


def _theft(name: str, why: str, body: str) -> HostileProgram:
    return HostileProgram(
        name=name, why=why, source=theft(body), tests=TELL_SECRET, outcomes=_EMPTY_HANDED, limits=ROOMY
    )


def _attack(name: str, why: str, body: str) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=attack(body), tests=DOUBLE, outcomes=_EMPTY_HANDED, limits=ROOMY)


HOST = (
    _theft(
        "environment",
        "the environment that the service was started with",
        f"""
        import ctypes
        yield os.environ.get({BAIT_VARIABLE!r}, "")
        yield repr(dict(os.environ))
        pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        index = 0
        while pointer and pointer[index]:
            yield pointer[index]
            index += 1
        """,
    ),
    _theft(
        "initial_stack",
        "what the kernel put on the stack when the host was started: arguments, environment, program name",
        """
        import ctypes
        count, arguments = ctypes.c_int(), ctypes.POINTER(ctypes.c_void_p)()
        ctypes.pythonapi.Py_GetArgcArgv(ctypes.byref(count), ctypes.byref(arguments))
        yield repr(sys.orig_argv)
        libc = ctypes.CDLL(None)
        end = ctypes.cast(ctypes.c_char_p.in_dll(libc, "program_invocation_name"), ctypes.c_void_p).value
        reader, writer = os.pipe()
        for start in range(end & ~4095, (end & ~4095) + (1 << 17), 4096):
            if libc.write(writer, ctypes.c_void_p(start), ctypes.c_size_t(4096)) != 4096:
                break
            yield os.read(reader, 4096)
        """,
    ),
    _attack(
        "system_files",
        "files that every machine has",
        """
        names = (
            "etc/passwd", "etc/shadow", "etc/hostname", "etc/resolv.conf", "etc/machine-id", "proc/cpuinfo",
            "proc/self/mountinfo", "proc/net/tcp", "sys/kernel/mm/transparent_hugepage/enabled", "var/log/dpkg.log",
            "run/secrets/kubernetes.io/serviceaccount/token", "var/lib/dpkg/status", "boot", "proc", "etc", "var/log",
        )
        def opened(path):
            os.close(os.open(path, os.O_RDONLY))
        return any([worked(opened, os.path.join("/", name)) for name in names])
        """,
    ),
    _attack(
        "home_folders",
        "keys and histories in home folders",
        """
        homes = [os.path.join("/", name) for name in ("root", "home", "home/user", "mnt", "srv", "opt", "data")]
        names = (
            ".ssh/id_rsa", ".ssh/id_ed25519", ".bash_history", ".netrc", ".aws/credentials", ".kube/config",
            ".cache/huggingface/token", ".bashrc", ".profile",
        )
        def opened(path):
            os.close(os.open(path, os.O_RDONLY))
        def beyond_the_interpreter(home):
            names = [name for name in os.listdir(home) if not sys.base_prefix.startswith(os.path.join(home, name))]
            if not names:
                raise OSError("nothing but the way to the interpreter")
            print(home, names, file=sys.stderr)
        listed = [worked(beyond_the_interpreter, home) for home in homes]
        return any(listed + [worked(opened, os.path.join(home, name)) for home in homes for name in names])
        """,
    ),
    _attack(
        "project_files",
        "the project around the sandbox's own files: recipes, data sets, tests with answers",
        """
        import types
        folders = {path for path in sys.path if path}
        for module in list(sys.modules.values()):
            if isinstance(module, types.ModuleType) and module.__name__.startswith("funicular"):
                folders.update(getattr(module, "__path__", []))
        names = (
            "pyproject.toml", "tests/sandbox/programs.py", "README.md", "launch/cli.py", "ledger.jsonl", ".git/HEAD",
            "rewards/gsm8k.py", "rewards/runner.py", "gsm8k.py", "runner.py", "drive.py",
        )
        def opened(path):
            os.close(os.open(path, os.O_RDONLY))
            print(path, file=sys.stderr)
        found = []
        for folder in folders:
            for up in ("", "..", "../..", "../../.."):
                found += [worked(opened, os.path.join(folder, up, name)) for name in names]
        return any(found)
        """,
    ),
    _attack(
        "bait_in_tmp",
        "files of others in /tmp, where Ray keeps its sessions",
        """
        found = [worked(open, "/tmp/funicular-bait/precious"), worked(os.listdir, "/tmp/funicular-bait")]
        found.append(worked(os.listdir, "/tmp/ray"))
        def others(folder):
            names = os.listdir(folder)
            if not [name for name in names if "funicular-bait" in name]:
                raise OSError("not there")
        return any(found + [worked(others, folder) for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run")])
        """,
    ),
    _attack(
        "shared_memory_of_the_host",
        "a System V segment that everyone may read, POSIX segments",
        f"""
        attached = call("shmget", {BAIT_SHM_KEY}, 0, 0) >= 0
        return attached or worked(os.listdir, "/dev/shm") and bool(os.listdir("/dev/shm"))
        """,
    ),
    _attack(
        "descriptors",
        "descriptors that it inherited, beyond 0, 1 and 2",
        """
        def inherited(number):
            os.fstat(number)
            print(number, file=sys.stderr)
        return any([worked(inherited, number) for number in range(3, 4096)])
        """,
    ),
    _attack(
        "other_slots",
        "folders beside its own: other slots, the host's",
        """
        here = os.getcwd()
        found = []
        def touch(path):
            with open(path, "w"):
                pass
        for up in ("..", "../..", "../../.."):
            folder = os.path.abspath(os.path.join(here, up))
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in names:
                path = os.path.join(folder, name)
                if path == here or not os.path.isdir(path) or os.path.islink(path):
                    continue
                if name.startswith(("funicular", "slot", "work")):
                    found.append(worked(os.listdir, path))
                if folder != "/":
                    found.append(worked(touch, os.path.join(path, "funicular-left-file")))
        return any(found)
        """,
    ),
)

_OBJECTS = """
import gc, types
seen = set()
todo = [gc.get_objects(), list(sys.modules.values()), sys._current_frames()]
frame = sys._getframe()
while frame:
    todo.append(frame)
    frame = frame.f_back
while todo and len(seen) < 300_000:
    thing = todo.pop()
    if id(thing) in seen:
        continue
    seen.add(id(thing))
    if isinstance(thing, (str, bytes, bytearray)):
        yield bytes(thing) if isinstance(thing, bytearray) else thing
    elif isinstance(thing, types.FrameType):
        todo.append(thing.f_locals)
        todo.append(thing.f_globals)
    else:
        todo.extend(gc.get_referents(thing))
"""

_MEMORY = """
import ctypes
write = ctypes.CDLL(None).write
reader, writer = os.pipe()
page = 4096
blocks = [ctypes.create_string_buffer(size) for size in (100, 5_000, 60_000, 200_000, 2_000_000)]
texts = [bytes(size) for size in (10, 600, 5_000, 60_000, 300_000)]
starts = [ctypes.addressof(block) for block in blocks] + [id(text) for text in texts] + [id(object()), id(0), id(sys)]
seen = set()
for start in starts:
    for step in (page, -page):
        address, misses, steps = start & ~(page - 1), 0, 0
        while misses < 256 and steps < 12_000:
            steps += 1
            if address in seen:
                misses += 1
            else:
                seen.add(address)
                if write(writer, ctypes.c_void_p(address), ctypes.c_size_t(page)) == page:
                    yield os.read(reader, page)
                    misses = 0
                else:
                    misses += 1
            address += step
"""
"""Whether a page is there, the kernel says without a signal: writing from a bad address fails with EFAULT."""

_SEARCH_IN_CALL = f"""
def solve(n):
    for text in haul():
        text = text.encode("utf-8", "replace") if isinstance(text, str) else text
        match = re.search(rb"{SECRET_PATTERN}", text)
        if match:
            return match.group().decode()
    return "nothing"
"""


def _in_call(name: str, why: str, body: str, tests: TestSet = _TELL_BY_CALL) -> HostileProgram:
    return HostileProgram(
        name=name,
        why=why,
        source=hauling(body) + _SEARCH_IN_CALL,
        tests=tests,
        outcomes=frozenset({Outcome.WRONG}),
        limits=ROOMY,
    )


MEMORY = (
    _theft("objects", "every object that the collector, the modules and the frames lead to", _OBJECTS),
    _theft("memory", "all memory that it can map out, page by page", _MEMORY),
    _in_call("objects_in_call", "objects and frames while a call is answered", _OBJECTS),
    _in_call("memory_in_call", "all memory while a call is answered", _MEMORY),
    _in_call("objects_in_check", "objects and frames of the process that a tester calls", _OBJECTS, _TELL_BY_CHECK),
    _in_call("memory_in_check", "all memory of that process", _MEMORY, _TELL_BY_CHECK),
    HostileProgram(
        name="memory_of_earlier_jobs",
        why="the source and the input of the job before: another completion's work, perhaps right",
        source=attack(
            f"""
            import re
            pattern = re.compile(rb"{PEER_PATTERN}")
            def pages():
            {_MEMORY.replace(chr(10), chr(10) + " " * 16)}
            return any([pattern.search(text) for text in pages()])
            """
        ),
        tests=DOUBLE,
        outcomes=_EMPTY_HANDED,
        limits=ROOMY,
    ),
    HostileProgram(
        name="next_inputs",
        why="reads its input again, from before and beyond, and through other descriptors",
        source=theft(
            """
            for number in range(64):
                for action in (lambda: os.lseek(number, 0, 0), lambda: os.pread(number, 1 << 16, 0)):
                    try:
                        text = action()
                    except OSError:
                        continue
                    if isinstance(text, bytes):
                        yield text
            """
        ),
        tests=stdio(("first\n", SECRET + "\n"), (SECRET + "\n", SECRET + "\n")),
        outcomes=_EMPTY_HANDED,
    ),
    HostileProgram(
        name="next_calls",
        why="reads the call channel for the calls to come",
        source=code("""
import os, socket
seen = []
def solve(n):
    channel = socket.socket(fileno=os.dup(4))
    channel.setblocking(False)
    try:
        seen.append(channel.recv(1 << 16))
    except OSError as error:
        return "nothing came before its time"
    return seen[-1].decode()
"""),
        tests=calls(((1,), SECRET), ((SECRET,), SECRET)),
        outcomes=frozenset({Outcome.WRONG, Outcome.RUNTIME_ERROR, Outcome.PROTOCOL, Outcome.FORBIDDEN}),
    ),
)

CANARY = (
    HostileProgram(
        name="expected_outputs_on_disk",
        why="looks for files of expected outputs, and prints them",
        source=code("""
import os
print("looking")
folders = ["/tests", os.path.join(os.getcwd(), "..", "tests"), os.path.join(os.getcwd(), ".."), "/", "."]
for folder in folders:
    try:
        names = os.listdir(folder)
    except OSError:
        names = ["expected_output.json"]
    for name in names:
        if "expected" in name:
            try:
                print(open(os.path.join(folder, name)).read())
            except OSError as error:
                print(error)
"""),
        tests=TELL_SECRET,
        outcomes=_WRONG,
        reads_canary=True,
    ),
)

PROGRAMS = (*HOST, *MEMORY, *CANARY)
