"""Run the command line: ``python -m espnet_speechllm_xl`` is ``speechllm-xl``."""

from espnet_speechllm_xl.bin.cli import run

run()
