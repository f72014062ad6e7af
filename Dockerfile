# sid-lsg with CUDA. Build it in the repository, and run a command of sid-lsg in it:
#
#   docker build --tag sid-lsg .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD:/work" \
#     sid-lsg fit --config package:configs/lsg.yaml --data.prompts prompts.txt
#
# --ipc host: the data loader's workers and NCCL need more shared memory than Docker gives.
# torch's wheels bring their own CUDA libraries; the image adds the driver's interface.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# torch.compile needs the compiler at run time.
RUN python3 -m venv /opt/sid-lsg
ENV PATH=/opt/sid-lsg/bin:$PATH

# Dependencies first: they change less often than the code.
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY sid_lsg sid_lsg
RUN pip install --no-cache-dir --constraint constraints.txt ".[parquet,tensorboard,lora,eight-bit]" \
    && install --directory --owner 1001 --group 1001 /work

# Runs and downloads lie in the mounted folder, and belong to the user of `docker run --user`.
USER 1001:1001
WORKDIR /work
ENV HF_HOME=/work/.cache/huggingface \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["sid-lsg"]
CMD ["--help"]
