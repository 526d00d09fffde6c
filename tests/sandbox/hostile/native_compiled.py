"""Hostile programs in C++: while they are compiled, and while they run. At L3 only."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Level, Limits, Outcome, TestSet
from tests.sandbox.programs import DOUBLE, FAILURES, PLANT_AND_FIND, HostileProgram, code

_TIME = frozenset({Outcome.CPU, Outcome.WALL})
_STUCK = _TIME | {Outcome.COMPILE_ERROR, Outcome.MEMORY}
_LIMITS = Limits(cpu_s=1.0, memory_mib=512, output_kib=256, disk_mib=16)


def _program(
    name: str, why: str, source: str, tests: TestSet = DOUBLE, outcomes: frozenset[Outcome] = FAILURES
) -> HostileProgram:
    return HostileProgram(
        name=f"cpp_{name}",
        why=why,
        source=code(source),
        tests=tests,
        outcomes=outcomes,
        language="cpp",
        levels=(Level.L3,),
        limits=_LIMITS,
    )


PROGRAMS = (
    _program("fork_bomb", "forks for ever", "#include <unistd.h>\nint main() { while (1) fork(); }\n"),
    _program("loop", "loops for ever", "int main() { volatile int i = 0; while (1) i = i + 1; }\n", outcomes=_TIME),
    _program(
        "memory",
        "allocates for ever",
        """
        #include <cstdlib>
        #include <cstring>
        #include <cstdio>
        int main() {
            for (int i = 0; i < 4000; i++) {
                char* p = (char*)malloc(1 << 20);
                if (!p) return 1;
                memset(p, 1, 1 << 20);
            }
            puts("42");
        }
        """,
    ),
    _program(
        "memory_of_many",
        "ten processes, each within its limit",
        """
        #include <cstdlib>
        #include <cstdio>
        #include <unistd.h>
        #include <sys/wait.h>
        int main() {
            for (int i = 0; i < 10; i++)
                if (fork() == 0) {
                    volatile char* p = (volatile char*)malloc(300 << 20);
                    if (!p) return 1;
                    for (long at = 0; at < 300 << 20; at += 4096) p[at] = 1;
                    sleep(1);
                    return 0;
                }
            int failed = 0, status;
            while (wait(&status) > 0) failed |= status;
            if (!failed) puts("42");
        }
        """,
        outcomes=_TIME | {Outcome.MEMORY, Outcome.WRONG, Outcome.RUNTIME_ERROR},
    ),
    _program(
        "shared_memory",
        "shared maps, which are no data of any process",
        """
        #include <cstdio>
        #include <cstring>
        #include <sys/mman.h>
        int main() {
            for (int i = 0; i < 24; i++) {
                void* p = mmap(0, 64 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                if (p == MAP_FAILED) return 1;
                memset(p, 1, 64 << 20);
            }
            puts("42");
        }
        """,
        outcomes=_TIME | {Outcome.MEMORY, Outcome.RUNTIME_ERROR},
    ),
    _program(
        "hidden_time",
        "burns time in children that nobody waits for, so that no clock of it counts them",
        """
        #include <csignal>
        #include <cstdio>
        #include <ctime>
        #include <unistd.h>
        int main() {
            signal(SIGCHLD, SIG_IGN);
            for (int i = 0; i < 400; i++) {
                if (fork() == 0) {
                    while (clock() < CLOCKS_PER_SEC / 20) {}
                    _exit(0);
                }
                usleep(50000);
            }
            puts("42");
        }
        """,
        outcomes=_TIME,
    ),
    _program(
        "stack",
        "recursion without an end",
        """
        int f(int n) { volatile char c[4096]; c[0] = n; return f(n + 1) + c[0]; }
        int main() { return f(0); }
        """,
    ),
    _program(
        "ptrace",
        "traces, mounts, sockets, namespaces, all as system calls",
        """
        #include <sys/syscall.h>
        #include <unistd.h>
        #include <cstdio>
        #include <cerrno>
        int main() {
            long numbers[] = {SYS_ptrace, SYS_mount, SYS_unshare, SYS_setns, SYS_bpf, SYS_keyctl, SYS_io_uring_setup,
                              SYS_userfaultfd, SYS_perf_event_open, SYS_process_vm_readv, SYS_memfd_create, SYS_chroot};
            for (long number : numbers) {
                errno = 0;
                if (syscall(number, 0, 0, 0, 0, 0, 0) >= 0 || (errno != EPERM && errno != ENOSYS && errno != EACCES)) {
                    fprintf(stderr, "%ld %d\\n", number, errno);
                    puts("42");
                    return 0;
                }
            }
            return 1;
        }
        """,
    ),
    _program(
        "socket",
        "a socket",
        """
        #include <sys/socket.h>
        #include <cstdio>
        int main() {
            for (int family = 1; family < 45; family++)
                for (int type = 1; type < 6; type++)
                    if (socket(family, type, 0) >= 0) { puts("42"); return 0; }
            return 1;
        }
        """,
    ),
    _program(
        "include_secrets",
        "includes files of the host, whose lines stand in the compiler's errors",
        """
        #include "/etc/passwd"
        #include "/proc/self/environ"
        #include "/tests/expected_output.json"
        #include <cstdio>
        int main() { int n; if (scanf("%d", &n) != 1) return 1; printf("%d\\n", 2 * n); }
        """,
        outcomes=frozenset({Outcome.COMPILE_ERROR}),
    ),
    _program(
        "assemble_secrets",
        "puts a file of the host into the program while it is assembled",
        """
        #include <cstdio>
        asm(".section .rodata\\n.global text\\ntext: .incbin \\"/etc/passwd\\"\\n.byte 0\\n.text");
        extern const char text[];
        int main() { puts(text[0] ? "42" : "no"); }
        """,
        outcomes=frozenset({Outcome.COMPILE_ERROR, Outcome.RUNTIME_ERROR}),
    ),
    _program(
        "include_itself",
        "includes itself",
        """
        #include __FILE__
        #include __FILE__
        int main() {}
        """,
        outcomes=_STUCK,
    ),
    _program(
        "include_endless",
        "includes a device without an end",
        """
        #include "/dev/zero"
        #include "/dev/urandom"
        int main() {}
        """,
    ),
    _program(
        "template_bomb",
        "templates that take the compiler for ever",
        """
        template <int A, int B> struct S { static const int v = S<A - 1, B>::v + S<A - 1, B + A>::v; };
        template <int B> struct S<0, B> { static const int v = B; };
        int main() { return S<60, 0>::v; }
        """,
        outcomes=_STUCK,
    ),
    _program(
        "constant_bomb",
        "an evaluation at compile time without an end",
        """
        constexpr int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }
        constexpr int x = f(80);
        int main() { return x; }
        """,
        outcomes=_STUCK,
    ),
    _program(
        "large_program",
        "a program of a gibibyte",
        """
        char block[1 << 30] = {1};
        #include <cstdio>
        int main() { int n; if (scanf("%d", &n) != 1) return 1; printf("%d\\n", 2 * n + block[7]); }
        """,
        outcomes=_STUCK,
    ),
    _program(
        "many_errors",
        "errors without an end",
        """
        #define A x y z; x y z; x y z;
        #define B A A A A A A A A
        #define C B B B B B B B B
        #define D C C C C C C C C
        int main() { D D D D D D D D }
        """,
        outcomes=frozenset({Outcome.COMPILE_ERROR}) | _TIME,
    ),
    _program(
        "overwrites_itself",
        "overwrites the program that was compiled once and runs for each case",
        """
        #include <cstdio>
        #include <cstring>
        #include <unistd.h>
        #include <fcntl.h>
        int main(int argc, char** argv) {
            char phase[16] = {0};
            if (scanf("%15s", phase) != 1) return 1;
            if (strcmp(phase, "plant")) { puts("gone"); return 0; }
            const char* script = "#!/bin/sh\\necho found\\n";
            char self[4096] = {0};
            if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) strncpy(self, argv[0], sizeof self - 1);
            unlink(self);
            int out = open(self, O_WRONLY | O_CREAT | O_TRUNC, 0755);
            if (out >= 0) { if (write(out, script, strlen(script))) {} close(out); }
            puts("planted");
        }
        """,
        PLANT_AND_FIND,
    ),
    _program("no_program", "does not compile", "int main( { return 0 }\n", outcomes=frozenset({Outcome.COMPILE_ERROR})),
    _program(
        "abort",
        "right, then aborts",
        """
        #include <cstdlib>
        #include <cstdio>
        int main() { int n; if (scanf("%d", &n) != 1) return 1; printf("%d\\n", 2 * n); fflush(stdout); abort(); }
        """,
        outcomes=frozenset({Outcome.SIGNAL, Outcome.FORBIDDEN}),
    ),
    _program(
        "wrong_exit",
        "right, with status 1",
        """
        #include <cstdio>
        int main() { int n; if (scanf("%d", &n) != 1) return 1; printf("%d\\n", 2 * n); return 1; }
        """,
        outcomes=frozenset({Outcome.RUNTIME_ERROR}),
    ),
)
