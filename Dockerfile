# syntax=docker/dockerfile:1
# llc for machines with NVIDIA GPUs, and for those without: docs/how-to/containers.md says how to use it.
#
#   docker build --tag=llc .
#   docker run --rm --init -it --gpus=all --ipc=host --user="$(id -u):$(id -g)" --volume="$PWD:/data" llc bash
#
# The base is a plain Debian and not one of NVIDIA's CUDA images, because the wheels of torch bring all CUDA
# libraries (CUDA of the base would be there a second time, and unused), and because the driver comes from the
# host. Triton and torch.compile build code at run time; the g++ and the Python headers that `make setup`
# installs are what they need.
FROM debian:12-slim

# The commands of docs/install.md: first what a bare Debian lacks, then everything else. No versions are given
# to apt-get, because Debian keeps only the newest of each package, so a fixed one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates make python3 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/llc
COPY . .
# Downloads stay in a cache outside the image, so that a build after a change does not repeat them. uv must
# copy from there, because it cannot link from another file system.
ENV UV_LINK_MODE=copy
RUN --mount=type=cache,target=/root/.cache make setup && rm -rf /var/lib/apt/lists/*

# `docker run --user` may name a user that this system does not know: torch asks for a name, and Triton, torch
# and Matplotlib keep caches in the home folder. Hence the variables, and folders that anyone may write to.
RUN useradd --uid=1000 --create-home llc && mkdir /data && chmod 1777 /home/llc /data
ENV PATH=/opt/llc/.venv/bin:$PATH USER=llc HOME=/home/llc
# What --gpus=all makes visible of the driver; a runtime that is set up otherwise reads it from here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /data
CMD ["python", "-m", "llc.doctor"]
