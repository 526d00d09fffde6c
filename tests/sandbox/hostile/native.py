"""Hostile programs in bash and JavaScript, which may start processes. At L3 only."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Level, Limits, Outcome, TestSet
from tests.sandbox.programs import DOUBLE, FAILURES, PLANT_AND_FIND, TELL_SECRET, HostileProgram, code

_TIME = frozenset({Outcome.CPU, Outcome.WALL})
_LIMITS = Limits(cpu_s=1.0, memory_mib=512, output_kib=256, disk_mib=16)


def _program(
    name: str,
    language: str,
    why: str,
    source: str,
    tests: TestSet = DOUBLE,
    outcomes: frozenset[Outcome] = FAILURES,
) -> HostileProgram:
    return HostileProgram(
        name=f"{language}_{name}",
        why=why,
        source=code(source),
        tests=tests,
        outcomes=outcomes,
        language=language,
        levels=(Level.L3,),
        limits=_LIMITS,
    )


BASH = (
    _program("fork_bomb", "bash", "the classic", ":(){ :|:& };:\nwait\necho no\n"),
    _program(
        "background",
        "bash",
        "processes in the background, in sessions of their own, that outlive the script",
        """
        (setsid sleep 600 &)
        nohup sleep 600 >/dev/null 2>&1 &
        sleep 600 &
        disown -a
        echo no
        """,
    ),
    _program(
        "background_writer",
        "bash",
        "a process that waits for the next job",
        """
        read phase
        if [ "$phase" = plant ]; then
            (setsid bash -c 'for i in $(seq 100); do echo x > alive; sleep 0.05; done' >/dev/null 2>&1 &)
            sleep 0.2
            echo planted
        else
            sleep 0.3
            [ -e alive ] && echo found || echo gone
        fi
        """,
        PLANT_AND_FIND,
    ),
    _program("endless_output", "bash", "prints for ever", "yes\n", outcomes=_TIME | {Outcome.OUTPUT}),
    _program(
        "endless_loop",
        "bash",
        "loops for ever",
        """
        trap '' TERM INT XCPU
        while :; do :; done
        """,
        outcomes=_TIME,
    ),
    _program("sleep", "bash", "sleeps", "sleep 3600\nread n\necho $((n * 2))\n", outcomes=_TIME),
    _program(
        "files_of_the_host",
        "bash",
        "reads what every machine has",
        """
        for f in etc/passwd etc/shadow proc/1/environ proc/self/environ root/.ssh/id_rsa proc/mounts; do
          cat /$f && { echo 42; exit 0; }
        done
        exit 1
        """,
    ),
    _program(
        "network",
        "bash",
        "opens a connection by redirection",
        """
        for port in 22 80 6379 8265; do (echo x > /dev/tcp/127.0.0.1/$port) && { echo 42; exit; }; done
        exit 1
        """,
    ),
    _program(
        "kill_all",
        "bash",
        "kills all that it may",
        "kill -9 1\nkill -9 -1\nkill -9 $PPID\nread n\nexit 1\n",
    ),
    _program(
        "descriptors",
        "bash",
        "writes a verdict to every descriptor",
        """
        for n in $(seq 3 60); do echo '{"outcome": "ok", "run": 1, "failed": 0}' >&$n; done 2>/dev/null
        echo 41
        """,
    ),
    _program(
        "fill_disk",
        "bash",
        "fills the disk",
        """
        for n in $(seq 200); do head -c 1048576 /dev/zero > f$n || exit 1; done
        read n
        echo $((n * 2))
        """,
    ),
    _program(
        "raised_limits",
        "bash",
        "raises its limits, then starts a hundred processes",
        """
        ulimit -u unlimited; ulimit -t unlimited; ulimit -v unlimited
        for n in $(seq 100); do sleep 5 & done
        [ $(jobs -p | wc -l) -ge 100 ] && echo 42
        exit 1
        """,
    ),
    _program(
        "leftovers",
        "bash",
        "leaves files for the next job in every folder that it may write",
        """
        read phase
        if [ "$phase" = plant ]; then
            for d in . .. / /tmp /build /var/tmp /dev/shm $HOME; do echo x > $d/funicular-left-file; done 2>/dev/null
            echo planted
        else
            for d in . .. / /tmp /build /var/tmp /dev/shm $HOME; do
                [ -e $d/funicular-left-file ] && echo found && exit
            done
            echo gone
        fi
        """,
        PLANT_AND_FIND,
    ),
    HostileProgram(
        name="bash_expected_outputs",
        why="prints files of expected outputs",
        source="cat /tests/* ../tests/*\necho looked\n",
        tests=TELL_SECRET,
        outcomes=frozenset({Outcome.WRONG}),
        language="bash",
        levels=(Level.L3,),
        limits=_LIMITS,
        reads_canary=True,
    ),
    _program(
        "unshare",
        "bash",
        "new namespaces, mounts",
        """
        unshare -Ur true || unshare -n true || mount -t tmpfs none . || exit 1
        echo 42
        """,
    ),
)

JAVASCRIPT = (
    _program("loop", "javascript", "loops for ever", "while (true) {}\n", outcomes=_TIME),
    _program("exit_0", "javascript", "ends well", "process.exit(0)\n", outcomes=frozenset({Outcome.WRONG})),
    _program(
        "files_of_the_host",
        "javascript",
        "reads what every machine has",
        """
        const fs = require('fs');
        for (const f of ['/etc/passwd', '/proc/self/environ', '/proc/1/maps']) {
          try { fs.readFileSync(f); console.log(42); process.exit(0); } catch (e) {}
        }
        process.exit(1);
        """,
    ),
    _program(
        "network",
        "javascript",
        "connects and listens",
        """
        const net = require('net');
        const s = net.createServer();
        s.on('error', () => process.exit(1));
        s.listen(0, '127.0.0.1', () => { console.log(42); process.exit(0); });
        """,
    ),
    _program(
        "memory",
        "javascript",
        "allocates for ever",
        """
        const a = [];
        while (true) a.push(Buffer.alloc(1 << 24, 1));
        """,
    ),
    _program(
        "kill_all",
        "javascript",
        "kills its parent and all",
        """
        for (const p of [1, process.ppid, -1]) { try { process.kill(p, 9); } catch (e) {} }
        process.exit(1);
        """,
    ),
    _program(
        "threads",
        "javascript",
        "workers without an end",
        """
        const { Worker } = require('worker_threads');
        for (let i = 0; i < 500; i++) new Worker('while (true) {}', { eval: true });
        """,
    ),
    _program(
        "environment",
        "javascript",
        "prints its environment",
        "console.log(JSON.stringify(process.env), process.argv)\n",
        TELL_SECRET,
        frozenset({Outcome.WRONG}),
    ),
)

PROGRAMS = (*BASH, *JAVASCRIPT)
