"""Writes Triton model repositories for tests, benchmarks and the demo.

Every function takes the repository directory, writes one model below it and returns its name. The
models' own code is in `python/`, one file a kind; numbers reach it as config parameters.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

_SOURCES = Path(__file__).parent / "python"
# Beside the models of `write_all`: who holds it holds its slow model, as `tests.held` does.
SLOW_LOCK = "slow.lock"
_FIGURES = Path(__file__).parents[1] / "nvml" / "figures.py"


@dataclass(frozen=True)
class Tensor:
    """An input or output; `datatype` as on the wire ("FP32", "BYTES"), `dims` without the batch."""

    name: str
    datatype: str = "FP32"
    dims: tuple[int, ...] = (16,)
    optional: bool = False
    ragged: bool = False

    @property
    def config_type(self) -> int:
        name = "STRING" if self.datatype == "BYTES" else self.datatype
        return int(model_config_pb2.DataType.Value(f"TYPE_{name}"))


@dataclass(frozen=True)
class DynamicBatching:
    """Triton's own batcher; the delay is in microseconds."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0


@dataclass(frozen=True)
class Sequencing:
    """Triton's sequence batcher; the idle time is in microseconds."""

    idle_us: int = 60_000_000


def write_model(
    repository: Path,
    name: str,
    *,
    source: str | Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_batch_size: int = 64,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
    parameters: Mapping[str, str] | None = None,
    decoupled: bool = False,
    sequence: Sequencing | None = None,
) -> str:
    """Writes `name`/config.pbtxt and `name`/1/model.py; `source` is a file or a stem in python/."""
    config = model_config_pb2.ModelConfig(
        name=name, backend="python", max_batch_size=max_batch_size
    )
    for tensor in inputs:
        config.input.add(
            name=tensor.name,
            data_type=tensor.config_type,
            dims=tensor.dims,
            optional=tensor.optional,
            allow_ragged_batch=tensor.ragged,
        )
    for tensor in outputs:
        config.output.add(name=tensor.name, data_type=tensor.config_type, dims=tensor.dims)
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=instances)
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    config.model_transaction_policy.decoupled = decoupled
    if dynamic_batching is not None:
        config.dynamic_batching.preferred_batch_size.extend(dynamic_batching.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = dynamic_batching.max_queue_delay_us
    if sequence is not None:
        _add_sequence_controls(config, sequence)

    version = Path(repository) / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    path = source if isinstance(source, Path) else _SOURCES / f"{source}.py"
    shutil.copyfile(path, version / "model.py")
    return name


def _add_sequence_controls(config: model_config_pb2.ModelConfig, sequence: Sequencing) -> None:
    control = model_config_pb2.ModelSequenceBatching.Control
    batching = config.sequence_batching
    batching.max_sequence_idle_microseconds = sequence.idle_us
    for name, kind in (
        ("START", control.CONTROL_SEQUENCE_START),
        ("END", control.CONTROL_SEQUENCE_END),
        ("READY", control.CONTROL_SEQUENCE_READY),
    ):
        flag = batching.control_input.add(name=name).control.add(kind=kind)
        flag.int32_false_true.extend([0, 1])


def identity(
    repository: Path,
    name: str = "identity",
    *,
    datatype: str = "FP32",
    dims: tuple[int, ...] = (16,),
    max_batch_size: int = 64,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
) -> str:
    """OUTPUT0 = INPUT0, of any datatype and dims (-1 for variable ones)."""
    return write_model(
        repository,
        name,
        source="identity",
        inputs=[Tensor("INPUT0", datatype, dims)],
        outputs=[Tensor("OUTPUT0", datatype, dims)],
        max_batch_size=max_batch_size,
        instances=instances,
        dynamic_batching=dynamic_batching,
    )


def unbatched(repository: Path, name: str = "unbatched") -> str:
    """An identity FP32[16] whose shapes have no batch dimension (max_batch_size 0)."""
    return identity(repository, name, max_batch_size=0)


def mixed(
    repository: Path,
    name: str = "mixed",
    *,
    max_batch_size: int = 64,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
) -> str:
    """Echoes VALUES FP32[16] and LABEL BYTES[1]; SUM FP32[1] is the sum of each row of VALUES."""
    return write_model(
        repository,
        name,
        source="mixed",
        inputs=[Tensor("VALUES"), Tensor("LABEL", "BYTES", (1,))],
        outputs=[
            Tensor("VALUES_ECHO"),
            Tensor("LABEL_ECHO", "BYTES", (1,)),
            Tensor("SUM", "FP32", (1,)),
        ],
        max_batch_size=max_batch_size,
        instances=instances,
        dynamic_batching=dynamic_batching,
    )


def checksum(
    repository: Path,
    name: str = "checksum",
    *,
    dims: tuple[int, ...] = (-1,),
    max_batch_size: int = 8,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
) -> str:
    """CHECKSUM UINT32[1] is the sum of the words of each row of INPUT0 FP32 modulo 2^32."""
    return write_model(
        repository,
        name,
        source="checksum",
        inputs=[Tensor("INPUT0", dims=dims)],
        outputs=[Tensor("CHECKSUM", "UINT32", (1,))],
        max_batch_size=max_batch_size,
        instances=instances,
        dynamic_batching=dynamic_batching,
    )


def slow(
    repository: Path,
    name: str = "slow",
    *,
    per_execution_s: float = 0.02,
    per_row_s: float = 0.0,
    dims: tuple[int, ...] = (16,),
    max_batch_size: int = 64,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
    lock: Path | None = None,
) -> str:
    """An identity FP32 that sleeps `per_execution_s` + rows * `per_row_s` in each execution.

    Of the models that name one `lock`, a file, one execution sleeps at a time.
    """
    return write_model(
        repository,
        name,
        source="slow",
        inputs=[Tensor("INPUT0", dims=dims)],
        outputs=[Tensor("OUTPUT0", dims=dims)],
        max_batch_size=max_batch_size,
        instances=instances,
        dynamic_batching=dynamic_batching,
        parameters={
            "per_execution_s": repr(per_execution_s),
            "per_row_s": repr(per_row_s),
            **({"lock": str(lock)} if lock is not None else {}),
        },
    )


def witness(
    repository: Path, notes: Path, name: str = "witness", *, per_execution_s: float = 0.0
) -> str:
    """An identity FP32[16] that appends to the file `notes` when it is loaded, run and unloaded.

    Its load waits while there is a file `notes`.NAME.hold, and fails with the text of a file
    `notes`.NAME.fail.
    """
    return write_model(
        repository,
        name,
        source="witness",
        inputs=[Tensor("INPUT0")],
        outputs=[Tensor("OUTPUT0")],
        parameters={"notes": str(notes), "per_execution_s": repr(per_execution_s)},
    )


def failing(repository: Path, name: str = "failing", *, max_batch_size: int = 64) -> str:
    """An identity FP32[16] whose whole execution fails if any of its rows has a negative number."""
    return write_model(
        repository,
        name,
        source="failing",
        inputs=[Tensor("INPUT0")],
        outputs=[Tensor("OUTPUT0")],
        max_batch_size=max_batch_size,
    )


def decoupled(
    repository: Path,
    name: str = "decoupled",
    *,
    max_batch_size: int = 8,
    instances: int = 1,
    dynamic_batching: DynamicBatching | None = None,
) -> str:
    """Answers COUNT INT32[1] = n by n responses with INDEX INT32[1] = 0 … n-1."""
    return write_model(
        repository,
        name,
        source="decoupled",
        inputs=[Tensor("COUNT", "INT32", (1,))],
        outputs=[Tensor("INDEX", "INT32", (1,))],
        max_batch_size=max_batch_size,
        instances=instances,
        dynamic_batching=dynamic_batching,
        decoupled=True,
    )


def repeat(
    repository: Path,
    name: str = "repeat",
    *,
    journal: Path | None = None,
    instances: int = 2,
) -> str:
    """Decoupled: COUNT responses with INDEX 0 … and SIZE bytes of PAYLOAD, one every DELAY_MS.

    Number FAIL_AT is an error instead. COUNT, DELAY_MS, FAIL_AT and SIZE are INT32[1]; all but
    COUNT may be left out. `journal` gets a line for each request that ended: id, "done" or
    "cancelled", responses.
    """
    return write_model(
        repository,
        name,
        source="repeat",
        inputs=[
            Tensor("COUNT", "INT32", (1,)),
            *(Tensor(key, "INT32", (1,), optional=True) for key in ("DELAY_MS", "FAIL_AT", "SIZE")),
        ],
        outputs=[Tensor("INDEX", "INT32", (1,)), Tensor("PAYLOAD", "UINT8", (-1,))],
        max_batch_size=1,
        instances=instances,
        parameters={"journal": str(journal or Path(repository) / name / "journal")},
        decoupled=True,
    )


def sequence(
    repository: Path,
    name: str = "sequence",
    *,
    max_batch_size: int = 8,
    sequencing: Sequencing = Sequencing(),
    instances: int = 1,
) -> str:
    """SUM INT32[1] is the running sum of VALUE INT32[1] over the sequence so far."""
    return write_model(
        repository,
        name,
        source="sequence",
        inputs=[Tensor("VALUE", "INT32", (1,))],
        outputs=[Tensor("SUM", "INT32", (1,))],
        max_batch_size=max_batch_size,
        instances=instances,
        sequence=sequencing,
    )


def optional_input(repository: Path, name: str = "optional", *, max_batch_size: int = 64) -> str:
    """OUTPUT0 = INPUT0 + BIAS, all FP32[16]; BIAS may be left out and counts as zero."""
    return write_model(
        repository,
        name,
        source="optional_input",
        inputs=[Tensor("INPUT0"), Tensor("BIAS", optional=True)],
        outputs=[Tensor("OUTPUT0")],
        max_batch_size=max_batch_size,
    )


def ensemble(
    repository: Path,
    name: str = "ensemble",
    *,
    steps: Sequence[str] = ("identity", "failing"),
    source: Tensor = Tensor("INPUT0"),
    target: Tensor = Tensor("OUTPUT0"),
    max_batch_size: int = 64,
) -> str:
    """`source` goes through the models `steps`, which have both tensors, to `target`."""
    config = model_config_pb2.ModelConfig(name=name, platform="ensemble")
    config.max_batch_size = max_batch_size
    for tensors, tensor in ((config.input, source), (config.output, target)):
        tensors.add(name=tensor.name, data_type=tensor.config_type, dims=tensor.dims)
    between = [f"step {number}" for number in range(1, len(steps))]
    for model, given, made in zip(
        steps, [source.name, *between], [*between, target.name], strict=True
    ):
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map[source.name] = given
        step.output_map[target.name] = made
    version = Path(repository) / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    return name


def write_all(repository: Path) -> list[str]:
    """One of each kind under its default name, and identities of further datatypes."""
    Path(repository).mkdir(parents=True, exist_ok=True)
    return [
        identity(repository),
        identity(repository, "identity_bytes", datatype="BYTES", dims=(2,)),
        identity(repository, "identity_int64", datatype="INT64", dims=(-1,)),
        identity(repository, "identity_fp16", datatype="FP16", dims=(4, 2)),
        identity(repository, "identity_bool", datatype="BOOL", dims=(3,)),
        identity(repository, "identity_small", max_batch_size=8),
        unbatched(repository),
        mixed(repository),
        slow(repository, lock=Path(repository) / SLOW_LOCK),
        failing(repository),
        decoupled(repository),
        repeat(repository),
        sequence(repository),
        optional_input(repository),
        ensemble(repository),
        ensemble(repository, "slow_ensemble", steps=("slow", "identity")),
    ]


@dataclass(frozen=True)
class Arena:
    """What an execution of the arena model needs of the device at this place of the figures."""

    figures: Path
    device: int = 0
    base_bytes: int = 256 * 2**20
    bytes_per_row: int = 64 * 2**20
    bytes_per_element: int = 0
    weights_bytes: int = 0
    framework: str = "pytorch"  # onnxruntime, tensorrt, cuda: whose words an error has


def arena(
    repository: Path,
    needs: Arena,
    name: str = "arena",
    *,
    dims: tuple[int, ...] = (16,),
    max_batch_size: int = 64,
    instances: int = 1,
    per_execution_s: float = 0.0,
    per_row_s: float = 0.0,
) -> str:
    """An identity that takes memory of a device of tests/nvml as a framework's allocator does."""
    write_model(
        repository,
        name,
        source="arena",
        inputs=[Tensor("INPUT0", "FP32", dims)],
        outputs=[Tensor("OUTPUT0", "FP32", dims)],
        max_batch_size=max_batch_size,
        instances=instances,
        parameters={
            **{key: str(value) for key, value in asdict(needs).items()},
            "per_execution_s": str(per_execution_s),
            "per_row_s": str(per_row_s),
        },
    )
    shutil.copyfile(_FIGURES, Path(repository) / name / "1" / "figures.py")
    return name


def activations(
    repository: Path,
    name: str = "activations",
    *,
    base_bytes: int,
    bytes_per_row: int,
    device: int = 0,
    max_batch_size: int = 64,
) -> str:
    """An identity that takes memory of a real GPU, by PyTorch."""
    return write_model(
        repository,
        name,
        source="activations",
        inputs=[Tensor("INPUT0", "FP32", (16,))],
        outputs=[Tensor("OUTPUT0", "FP32", (16,))],
        max_batch_size=max_batch_size,
        parameters={
            "base_bytes": str(base_bytes),
            "bytes_per_row": str(bytes_per_row),
            "device": str(device),
        },
    )
