# MLflow's server with the driver for Postgres. From the root of a checkout:
#   docker build -f k8s/images/mlflow.Dockerfile -t funicular-mlflow:0.1.0 .
FROM python:3.11-slim-bookworm
COPY requirements-cuda.lock /build/
RUN pip install --no-cache-dir --constraint /build/requirements-cuda.lock mlflow psycopg2-binary==2.9.13 \
    && useradd --uid 10001 --user-group --create-home funicular
USER 10001:10001
WORKDIR /home/funicular
