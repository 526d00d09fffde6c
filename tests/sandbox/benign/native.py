"""Programs in bash, C++ and JavaScript: at L3 only, since they need other programs."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Level, Limits
from tests.sandbox.programs import BenignProgram, code, stdio

_NUMBERS = stdio(("3\n1 2 3\n", "6\n"), ("2\n-5 15\n", "10\n"))
_LIMITS = Limits(cpu_s=10.0, memory_mib=1024)
"""A compiler and node start slowly on a busy machine."""


def _program(name: str, language: str, source: str) -> BenignProgram:
    return BenignProgram(
        name=f"{language}_{name}",
        source=code(source),
        tests=_NUMBERS,
        language=language,
        levels=(Level.L3,),
        limits=_LIMITS,
    )


PROGRAMS = (
    _program(
        "read",
        "bash",
        """
        read n
        read -a x
        s=0
        for v in ${x[@]}; do s=$((s + v)); done
        echo $s
        """,
    ),
    _program("pipes", "bash", "tail -n +2 | tr ' ' '\\n' | awk '{s += $1} END {print s}'\n"),
    _program(
        "functions_and_files",
        "bash",
        """
        #!/bin/bash
        set -euo pipefail
        cat > numbers
        total() { local s=0; while read -r v; do s=$((s + v)); done; echo "$s"; }
        sed 1d numbers | tr ' ' '\\n' | sort -n | total
        """,
    ),
    _program(
        "iostream",
        "cpp",
        """
        #include <bits/stdc++.h>
        using namespace std;
        int main() {
            int n; cin >> n;
            vector<long long> v(n);
            for (auto& x : v) cin >> x;
            cout << accumulate(v.begin(), v.end(), 0LL) << endl;
        }
        """,
    ),
    _program(
        "stdio_and_threads",
        "cpp",
        """
        #include <cstdio>
        #include <thread>
        int main() {
            int n, x; long s = 0;
            if (scanf("%d", &n) != 1) return 1;
            while (scanf("%d", &x) == 1) s += x;
            long twice = 0;
            std::thread t([&] { twice = 2 * s; });
            t.join();
            printf("%ld\\n", twice / 2);
            return 0;
        }
        """,
    ),
    _program(
        "read_file",
        "javascript",
        """
        const lines = require('fs').readFileSync(0, 'utf8').split('\\n');
        console.log(lines[1].trim().split(/\\s+/).map(Number).reduce((a, b) => a + b, 0));
        """,
    ),
    _program(
        "readline_events",
        "javascript",
        """
        const rl = require('readline').createInterface({input: process.stdin});
        const lines = [];
        rl.on('line', line => lines.push(line));
        rl.on('close', async () => {
            const values = await Promise.resolve(lines[1].split(' ').map(BigInt));
            console.log(String(values.reduce((a, b) => a + b, 0n)));
        });
        """,
    ),
)
