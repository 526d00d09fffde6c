# Sandbox pools: Ray, Funicular, and the packages that judged code may see. No torch, no vLLM, no CUDA.
# From the root of a checkout:
#   docker build -f k8s/images/sandbox.Dockerfile -t funicular-sandbox:0.1.0 .
FROM python:3.11-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv /opt/venv
COPY requirements-cuda.lock k8s/images/sandbox-packages.txt /build/
# the versions of the other image: what crosses between their processes is pickled
RUN uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode \
    --constraint /build/requirements-cuda.lock -r /build/sandbox-packages.txt setuptools

FROM packages AS project
COPY pyproject.toml README.md LICENSE /build/
COPY actors /build/actors
COPY cluster /build/cluster
COPY k8s /build/k8s
COPY launch /build/launch
COPY rewards /build/rewards
RUN /opt/venv/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels /build

FROM python:3.11-slim-bookworm
# for programs that are not Python, which need level L3: g++ and node; bash is there. wget and profile.d: see the GPU image
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ nodejs procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home funicular \
    && echo 'export PATH=/opt/venv/bin:$PATH' >/etc/profile.d/funicular.sh
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /wheels /wheels
RUN /opt/venv/bin/pip install --no-index --no-deps --no-cache-dir /wheels/*.whl
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/funicular
