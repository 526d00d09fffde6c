"""Programs that leave something for the next job, or outlive their own: the first case plants, the second finds."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, FAILURES, PLANT_AND_FIND, HostileProgram, code, persistent

_GONE = frozenset({Outcome.WRONG, Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})


def _program(name: str, why: str, plant: str, find: str) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=persistent(plant, find), tests=PLANT_AND_FIND, outcomes=_GONE)


FILES = (
    _program(
        "file_in_its_folder",
        "a file, a folder and a hidden file in the working directory",
        """
        for name in ("kept", ".kept"):
            with open(name, "w") as f:
                f.write("x")
        os.makedirs("deep/er")
        """,
        "return bool(os.listdir('.')) or os.path.exists('.kept')",
    ),
    _program(
        "files_elsewhere",
        "files in every folder where programs usually may write",
        """
        for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue", "/", os.path.expanduser("~"), ".."):
            worked(open, os.path.join(folder, "funicular-left-file"), "w")
        """,
        """
        folders = ("/var/tmp", "/dev/shm", "/run", "/dev/mqueue", "/", os.path.expanduser("~"), "..", "/tmp")
        return any([os.path.exists(os.path.join(folder, "funicular-left-file")) for folder in folders])
        """,
    ),
    _program(
        "python_modules",
        "modules and caches where Python looks for them, its own folder included",
        """
        import json
        places = [path for path in sys.path if path]
        places += [os.path.dirname(json.__file__), os.path.dirname(os.__file__), "."]
        for place in places:
            for name in ("sitecustomize.py", "usercustomize.py", "json.py", "funicular-left.pth", "random.py"):
                if place == "." or not os.path.exists(os.path.join(place, name)):
                    worked(open, os.path.join(place, name), "w")
            worked(os.mkdir, os.path.join(place, "__pycache__"))
            worked(open, os.path.join(place, "__pycache__", "funicular-left.pyc"), "w")
        """,
        """
        import importlib.util
        places = [path for path in sys.path if path] + [os.path.dirname(os.__file__), "."]
        left = [os.path.exists(os.path.join(place, "__pycache__", "funicular-left.pyc")) for place in places]
        return any(left) or importlib.util.find_spec("sitecustomize") is not None and os.path.exists("sitecustomize.py")
        """,
    ),
    _program(
        "interpreter_files",
        "opens the interpreter's own files to write",
        """
        import json
        for path in (os.__file__, json.__file__, sys.executable, json.__cached__):
            if path:
                worked(open, path, "r+b")
        """,
        """
        import json
        return any([path and worked(open, path, "r+b") for path in (os.__file__, json.__file__, json.__cached__)])
        """,
    ),
    _program(
        "times_and_modes_of_files",
        "marks files that it cannot write by their times, modes, owners and attributes",
        """
        import json
        for path in (os.__file__, json.__file__, os.path.dirname(os.__file__), "/", "/usr", sys.prefix, ".."):
            worked(os.utime, path, (12345, 12345))
            worked(os.setxattr, path, "user.funicular", b"x")
        """,
        """
        import json
        def marked(path):
            return os.stat(path).st_mtime == 12345 or "user.funicular" in os.listxattr(path)
        paths = (os.__file__, json.__file__, os.path.dirname(os.__file__), "/", "/usr", sys.prefix, "..")
        return any([worked(marked, path) and marked(path) for path in paths])
        """,
    ),
    _program(
        "marks_on_its_folder",
        "marks its folder, which may outlive the job, by time, mode and attributes",
        """
        worked(os.utime, ".", (12345, 12345))
        worked(os.setxattr, ".", "user.funicular", b"x")
        worked(os.chmod, ".", 0o711)
        """,
        """
        state = os.stat(".")
        try:
            attributes = os.listxattr(".")
        except OSError:
            attributes = []
        return state.st_mtime == 12345 or "user.funicular" in attributes or state.st_mode & 0o777 == 0o711
        """,
    ),
    _program(
        "numbers_of_files",
        "makes and removes files: numbers of later files, or times of the folder, tell that somebody was there",
        """
        for _ in range(500):
            open("x", "w").close()
            os.unlink("x")
        worked(os.utime, ".", (12345, 12345))
        """,
        """
        before = os.stat(".").st_mtime
        with open("y", "w") as f:
            return os.fstat(f.fileno()).st_ino > 400 and os.fstat(f.fileno()).st_ino < 1 << 20 or before == 12345
        """,
    ),
)

PROCESSES = (
    _program(
        "daemon",
        "a daemon that keeps writing",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                import time
                for _ in range(600):
                    open("alive", "w").close()
                    time.sleep(0.05)
                os._exit(0)
            os._exit(0)
        """,
        """
        import time
        time.sleep(0.3)
        return os.path.exists("alive")
        """,
    ),
    _program(
        "daemon_thread",
        "a thread that hopes to outlive the job",
        """
        import threading, time
        def write():
            while True:
                open("alive", "w").close()
                time.sleep(0.01)
        threading.Thread(target=write, daemon=True).start()
        """,
        """
        import threading, time
        time.sleep(0.2)
        return os.path.exists("alive") or threading.active_count() > 1
        """,
    ),
    _program(
        "handlers",
        "hooks of forks, exits, signals, imports, audits and the collector",
        """
        import atexit, gc, signal
        os.register_at_fork(before=lambda: open("hook", "w"), after_in_child=lambda: open("hook", "w"))
        atexit.register(open, "hook", "w")
        signal.signal(signal.SIGCHLD, lambda *_: open("hook", "w"))
        signal.setitimer(signal.ITIMER_REAL, 30)
        gc.callbacks.append(lambda *_: None)
        sys.meta_path.insert(0, None)
        """,
        """
        import gc, signal
        changed = signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, signal.SIG_IGN, None)
        return changed or os.path.exists("hook") or bool(gc.callbacks) or None in sys.meta_path
        """,
    ),
    _program(
        "changed_interpreter",
        "changes builtins, modules, types, limits and the environment of its interpreter",
        """
        import builtins, ctypes, json, math, random
        builtins.len = math.sqrt = json.loads = lambda *_: 42
        os.environ["FUNICULAR_LEFT"] = "x"
        sys.modules["funicular_left"] = sys
        os.umask(0o123)
        sys.setrecursionlimit(77777)
        random.seed(1)
        sys.set_int_max_str_digits(0)
        ctypes.c_long.from_address(id(7) + 24).value = 7
        """,
        """
        import builtins
        mask = os.umask(0)
        kept = [builtins.len.__name__ != "len", "FUNICULAR_LEFT" in os.environ, "funicular_left" in sys.modules]
        return any(kept) or sys.getrecursionlimit() == 77777 or mask == 0o123
        """,
    ),
    _program(
        "random_state",
        "leaves the random generator in a known state",
        "import random\nrandom.seed(1)",
        """
        import random
        first = random.random()
        return first == random.Random(1).random()
        """,
    ),
)

KERNEL = (
    _program(
        "kernel_objects",
        "System V segments, queues and semaphores, POSIX queues, keys",
        """
        call("shmget", 0x46554E4A, 4096, 0o1666)
        call("msgget", 0x46554E4A, 0o1666)
        call("semget", 0x46554E4A, 1, 0o1666)
        call("mq_open", b"funicular-left", 0o102, 0o666, None)
        call("add_key", b"user", b"funicular-left", b"x", 1, -4)
        """,
        """
        found = [call("shmget", 0x46554E4A, 0, 0), call("msgget", 0x46554E4A, 0), call("semget", 0x46554E4A, 0, 0)]
        found.append(call("mq_open", b"funicular-left", 0, 0, None))
        found.append(call("keyctl", 10, -4, b"user", b"funicular-left", 0))
        return any([result >= 0 for result in found])
        """,
    ),
    _program(
        "abstract_socket",
        "a name in the abstract namespace of sockets",
        """
        import socket
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        left.bind("\\0funicular-left")
        """,
        """
        import socket
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return worked(left.connect, "\\0funicular-left")
        """,
    ),
    _program(
        "locks",
        "locks on files of the interpreter",
        """
        import fcntl
        f = open(os.__file__)
        fcntl.flock(f, fcntl.LOCK_EX)
        worked(lambda: fcntl.fcntl(f, 1024, 0))
        """,
        """
        import fcntl
        return not worked(fcntl.flock, open(os.__file__), fcntl.LOCK_EX | fcntl.LOCK_NB)
        """,
    ),
)

VANDALS = (
    HostileProgram(
        name="closed_folder",
        why="takes the permissions from its folder, so that the next job cannot use it",
        source=code("""
            import os
            open('f', 'w').close()
            for mode in (0, 0o111):
                try:
                    os.chmod('.', mode)
                except OSError as error:
                    print(error)
            print('closed')
            """),
        tests=DOUBLE,
        outcomes=_GONE,
    ),
    HostileProgram(
        name="crash",
        why="leaves a core dump",
        source="import os\nos.abort()\n",
        tests=DOUBLE,
        outcomes=frozenset({Outcome.SIGNAL, Outcome.FORBIDDEN}),
    ),
    HostileProgram(
        name="segmentation_fault",
        why="writes to address 8",
        source="import ctypes\nctypes.memset(8, 1, 8)\n",
        tests=DOUBLE,
        outcomes=frozenset({Outcome.SIGNAL}),
    ),
    HostileProgram(
        name="overwritten_interpreter",
        why="overwrites the interpreter's objects, which its host shares until written",
        source=code("""
            import ctypes
            for thing in (int, str, None, True, dict, print):
                ctypes.memset(id(thing), 0x41, 64)
            print(int(input()) * 2)
            """),
        tests=DOUBLE,
        outcomes=FAILURES,
    ),
    HostileProgram(
        name="folder_gone",
        why="removes its working directory while it stands in it",
        source=code("""
            import os
            here = os.getcwd()
            os.mkdir('a')
            os.chdir('a')
            os.rmdir('../a')
            try:
                os.rmdir(here)
            except OSError as error:
                print(error)
            print(os.listdir('.'))
            """),
        tests=DOUBLE,
        outcomes=_GONE,
    ),
)

PROGRAMS = (*FILES, *PROCESSES, *KERNEL, *VANDALS)
