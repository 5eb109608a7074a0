# The demo and all commands on a CPU; see docs/guides/endpoints.md.
FROM python:3.12-slim

# For a GPU, the index of torch's builds with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY . /source
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" "/source[coco,demo,geo,video]" \
    && rm -rf /source \
    && useradd --create-home user \
    && mkdir --mode=1777 /cache /data

# Every user can write to the cache, so that `docker run --user` works.
ENV HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib GRADIO_SERVER_NAME=0.0.0.0 GRADIO_ANALYTICS_ENABLED=False
VOLUME /cache
USER user
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["hf-vit-seg"]
CMD ["demo", "--port", "7860"]
