# syntax=docker/dockerfile:1
# docker build -t regionclip .                                           CPU
# docker build -t regionclip:cuda --build-arg TORCH_BACKEND= .           CUDA; run it with --gpus all
# docker run --rm -v "$PWD:/work" regionclip detect photo.jpg --model my_detector --classes cat,kite

FROM python:3.12-slim

# uv's choice of torch: `cpu` is a build without CUDA's libraries; nothing is the registry's own, which has them.
ARG TORCH_BACKEND=cpu
# Of pyproject.toml; `--build-arg EXTRAS=` leaves what uses models.
ARG EXTRAS=pipeline

# OpenCV, which faster-coco-eval imports, looks for these.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml requirements.lock README.md LICENSE /source/
COPY regionclip_core /source/regionclip_core
COPY stages /source/regionclip_stages
COPY data /source/data
# The lock as constraints, not as a list: it names the CUDA libraries of the registry's torch.
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --constraints /source/requirements.lock \
       ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} "/source${EXTRAS:+[$EXTRAS]}" \
    && regionclip --help > /dev/null

RUN useradd --create-home regionclip && mkdir /work && chown regionclip /work
USER regionclip
WORKDIR /work
ENTRYPOINT ["regionclip"]
CMD ["--help"]
