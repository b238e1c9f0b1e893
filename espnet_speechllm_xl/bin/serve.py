"""``serve``: live streams over WebSocket and whole files over HTTP; see server/."""

import argparse
import ipaddress
import signal
import socket
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_config_arguments, add_model_arguments, load_config, load_settings
from espnet_speechllm_xl.server.limits import ServerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_model_arguments(parser)
    add_config_arguments(parser, ServerConfig)


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; returns 0 when the audio sent by then is done."""
    config = load_config(args, ServerConfig)
    _say(f"loading {args.model} ...")
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.server.app import bind, serve
    from espnet_speechllm_xl.server.service import Service

    with bind(config) as listener:
        if not (config.token or _is_loopback(listener)):
            _say(
                f"whoever reaches {config.host} may use it, by its IP address, as localhost or as {config.host}: "
                "give a --token"
            )
        model = Path(args.model).resolve()
        name = model.name if model.is_dir() else model.stem
        service = Service(Speech2Text.from_pretrained(**load_settings(args)), config, name)
        service.warm()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it has stopped
        serve(service, listener)
    return 0


def _say(text: str) -> None:
    print(f"speechllm-xl serve: {text}", file=sys.stderr, flush=True)


def _is_loopback(listener: socket.socket) -> bool:
    """Tell whether only this machine reaches the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
