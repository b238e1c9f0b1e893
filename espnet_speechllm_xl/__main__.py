"""``python -m espnet_speechllm_xl``."""

import sys

from espnet_speechllm_xl.bin.cli import main

sys.exit(main())
