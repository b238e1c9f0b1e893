"""Run the command line: ``python -m espnet_speechllm_xl`` is ``speechllm-xl``."""

import sys

from espnet_speechllm_xl.bin.cli import main

sys.exit(main())
