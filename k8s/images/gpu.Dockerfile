# Head, generators, learner, teachers, scorers. From the root of a checkout:
#   docker build -f k8s/images/gpu.Dockerfile -t funicular-gpu:0.1.0 .
# CUDA's libraries come with the packages of the lock; the node brings the driver.
FROM python:3.11-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv /opt/venv
COPY requirements-cuda.lock /build/
# --no-deps: the lock is complete (docs/dependencies.md)
RUN uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode --no-deps -r /build/requirements-cuda.lock

FROM packages AS project
COPY pyproject.toml README.md LICENSE /build/
COPY actors /build/actors
COPY cluster /build/cluster
COPY k8s /build/k8s
COPY launch /build/launch
COPY rewards /build/rewards
RUN /opt/venv/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels /build

FROM python:3.11-slim-bookworm
# gcc, g++: Triton and torch compile kernels at run time; ibverbs: NCCL opens it for RDMA; procps: the preStop hooks;
# wget: probes of older operators, which also start Ray in a login shell, hence profile.d
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ ibverbs-providers libibverbs1 libnuma1 procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home funicular \
    && echo 'export PATH=/opt/venv/bin:$PATH' >/etc/profile.d/funicular.sh
# Two layers: the large one changes with the lock only, and is pushed and pulled again only then.
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /wheels /wheels
RUN /opt/venv/bin/pip install --no-index --no-deps --no-cache-dir /wheels/*.whl
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/funicular
