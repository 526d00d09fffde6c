"""Programs that use what the system offers: threads, files, signals, pipes; within limits."""

from __future__ import annotations

from tests.sandbox.benign.reading import prints

SYSTEM = (
    prints(
        "threads",
        """
        import threading
        lock, total = threading.Lock(), []
        def add(n):
            with lock:
                total.append(n)
        ts = [threading.Thread(target=add, args=(i,)) for i in range(8)]
        [t.start() for t in ts]
        [t.join() for t in ts]
        print(sum(total))
        """,
        "28\n",
    ),
    prints(
        "thread_pool",
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            print(sum(pool.map(lambda n: n * n, range(100))))
        """,
        "328350\n",
    ),
    prints(
        "thread_of_the_background",
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        print('done')
        """,
        "done\n",
    ),
    prints(
        "queue_and_timer",
        """
        import queue, threading
        q = queue.Queue()
        threading.Timer(0.01, q.put, ['tick']).start()
        print(q.get(timeout=5))
        """,
        "tick\n",
    ),
    prints(
        "asyncio",
        """
        import asyncio
        async def f(n):
            await asyncio.sleep(0.01)
            return n
        async def main():
            print(sum(await asyncio.gather(*(f(n) for n in range(10)))))
        asyncio.run(main())
        """,
        "45\n",
    ),
    prints(
        "asyncio_in_threads",
        """
        import asyncio, time
        async def main():
            q = asyncio.Queue()
            await asyncio.to_thread(time.sleep, 0.01)
            await q.put(3)
            async with asyncio.timeout(5):
                print(await q.get())
        asyncio.run(main())
        """,
        "3\n",
    ),
    prints(
        "files",
        """
        with open('a.txt', 'w') as f:
            f.write('kept\\n')
        with open('a.txt', 'a') as f:
            f.write('added\\n')
        print(open('a.txt').read(), end='')
        """,
        """
        kept
        added
        """,
    ),
    prints(
        "folders",
        """
        import os, pathlib, shutil
        pathlib.Path('d/e').mkdir(parents=True)
        pathlib.Path('d/e/f').write_bytes(b'x' * 1000)
        os.rename('d/e/f', 'd/g')
        print(sorted(os.listdir('d')), os.path.getsize('d/g'))
        shutil.rmtree('d')
        print(os.listdir('.'))
        """,
        """
        ['e', 'g'] 1000
        []
        """,
    ),
    prints(
        "tempfile",
        """
        import os, tempfile
        with tempfile.TemporaryDirectory() as d:
            with tempfile.NamedTemporaryFile('w+', dir=d) as f:
                f.write('abc')
                f.seek(0)
                print(f.read(), os.path.exists(d))
        print(os.path.exists(d))
        """,
        """
        abc True
        False
        """,
    ),
    prints(
        "file_of_some_size",
        """
        with open('f', 'wb') as f:
            for _ in range(16):
                f.write(bytes(1 << 20))
        print(f.closed)
        """,
        "True\n",
    ),
    prints(
        "signal_handler",
        """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: print('alarm'))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        signal.pause()
        """,
        "alarm\n",
    ),
    prints(
        "environment_and_arguments",
        """
        import os, sys
        os.environ['A'] = 'b'
        print(os.getenv('A'), len(sys.argv), os.getpid() > 0, os.cpu_count() > 0)
        """,
        "b 1 True True\n",
    ),
    prints(
        "pipe_and_select",
        """
        import os, select
        r, w = os.pipe()
        os.write(w, b'x')
        print(select.select([r], [], [], 5)[0] == [r], os.read(r, 1))
        """,
        "True b'x'\n",
    ),
    prints(
        "socketpair",
        """
        import socket
        a, b = socket.socketpair()
        a.sendall(b'hello')
        print(b.recv(5).decode())
        """,
        "hello\n",
    ),
    prints(
        "resource_and_limits",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0)
        """,
        "True\n",
    ),
    prints(
        "subprocess_refused_and_handled",
        """
        import subprocess
        try:
            subprocess.run(['true'])
        except OSError:
            pass
        print('went on')
        """,
        "went on\n",
    ),
    prints(
        "cpu_for_a_second",
        """
        import time
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass
        print('done')
        """,
        "done\n",
    ),
    prints("memory_within_limits", "x = bytearray(300 << 20)\nprint(len(x) >> 20)\n", "300\n"),
    prints("system_refused_and_ignored", "import os\nos.system('clear')\nprint('went on')\n", "went on\n"),
    prints(
        "archives",
        """
        import gzip, io, tarfile, zipfile
        with gzip.open('a.gz', 'wt') as f:
            f.write('packed')
        with zipfile.ZipFile('b.zip', 'w') as z:
            z.write('a.gz')
        with tarfile.open('c.tar', 'w') as t:
            t.add('b.zip')
        print(gzip.open('a.gz', 'rt').read(), zipfile.ZipFile('b.zip').namelist(), tarfile.open('c.tar').getnames())
        """,
        "packed ['a.gz'] ['b.zip']\n",
    ),
    prints(
        "time_zones_and_identifiers",
        """
        import secrets, uuid
        from datetime import datetime, timezone
        from zoneinfo import ZoneInfo
        print(datetime(2024, 7, 1, 12, tzinfo=timezone.utc).astimezone(ZoneInfo('Europe/Paris')).hour)
        print(len(uuid.uuid4().hex), len(secrets.token_hex(8)))
        """,
        "14\n32 16\n",
    ),
    prints(
        "libraries_in_c",
        """
        import ctypes, mmap
        print(ctypes.CDLL(None).abs(-3))
        block = mmap.mmap(-1, 8192)
        block[:3] = b'abc'
        print(block[:3])
        """,
        "3\nb'abc'\n",
    ),
    prints(
        "profiling",
        """
        import cProfile, io, pstats, tracemalloc, timeit
        tracemalloc.start()
        profile = cProfile.Profile()
        profile.runcall(sum, range(1000))
        pstats.Stats(profile, stream=io.StringIO()).print_stats()
        print(timeit.timeit('1 + 1', number=10) >= 0, tracemalloc.get_traced_memory()[1] > 0)
        """,
        "True True\n",
    ),
)

NUMPY = (
    prints(
        "numpy",
        """
        import numpy as np
        a = np.arange(12).reshape(3, 4)
        print(a.sum(), (a @ a.T).trace(), a[:, 1].tolist())
        """,
        "66 506 [1, 5, 9]\n",
        needs="numpy",
    ),
    prints(
        "numpy_linalg",
        """
        import numpy as np
        rng = np.random.default_rng(0)
        a = rng.normal(size=(200, 200))
        x = np.linalg.solve(a, a @ np.ones(200))
        print(np.allclose(x, 1), np.fft.ifft(np.fft.fft([1, 2])).real.round().tolist())
        """,
        "True [1.0, 2.0]\n",
        needs="numpy",
    ),
    prints(
        "numpy_in_threads",
        """
        import numpy as np
        from concurrent.futures import ThreadPoolExecutor
        a = np.ones((300, 300))
        with ThreadPoolExecutor(4) as pool:
            print(int(sum(x.sum() for x in pool.map(lambda n: a @ a, range(4)))))
        """,
        "108000000\n",
        needs="numpy",
    ),
    prints(
        "numpy_reads_input",
        """
        import sys
        import numpy as np
        a = np.loadtxt(sys.stdin, dtype=int)
        print(a.sum(axis=0).tolist())
        """,
        "[4, 6]\n",
        given="1 2\n3 4\n",
        needs="numpy",
    ),
)

PROGRAMS = (*SYSTEM, *NUMPY)
