"""``serve``: live streams over WebSocket and whole files over HTTP; see server/."""

import signal
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_config_arguments, add_model_arguments, load_config, load_settings
from espnet_speechllm_xl.config import LOOPBACK, ServerConfig


def add_arguments(parser):
    """Options of the command."""
    add_model_arguments(parser)
    add_config_arguments(parser, ServerConfig)


def main(args):
    """Serve until SIGTERM or Ctrl-C; returns 0 when what had been sent by then is done."""
    config = load_config(args, ServerConfig)
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.server.app import bind, serve
    from espnet_speechllm_xl.server.service import Service

    if config.host not in LOOPBACK and not config.token:
        print(
            f"speechllm-xl serve: whoever reaches {config.host} may use it, its page only under the names localhost "
            f"and {config.host}: give a --token",
            file=sys.stderr,
        )
    with bind(config) as listener:
        model = Path(args.model).resolve()
        name = model.name if model.is_dir() else model.stem
        service = Service(Speech2Text.from_pretrained(**load_settings(args)), config, name)
        service.warm()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it has stopped
        serve(service, listener)
    return 0
