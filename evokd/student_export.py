"""A trained student handed over: architecture and figures as JSON, weights, programs of torch.export and ONNX, a diagram.

Programs map normalised images to logits alone, for any number of images. What cannot be converted leaves its reason in student.json
and costs nothing else.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from evokd.checkpoint import write_whole
from evokd.errors import EvokdError
from evokd.evaluate.students import Judge, StudentJob
from evokd.executor import Serial, Workers
from evokd.models.tapping import logits_of
from evokd.models.teachers import weights_key, write_weights
from evokd.students import read_definition, read_student_space, space_from
from evokd.students.cost import latency
from evokd.students.space import Genome

FORMAT = "evokd-student-1"
TOLERANCE = 1e-4  # of logits up to 1; of the greatest one where that is more
INPUT = "float32 (N,C,H,W): images scaled to 0…1, less mean, divided by std, channel by channel"
_KINDS = {
    "weights": str, "definition": dict, "genome": dict, "classes": int, "shape": list, "mean": list, "std": list,
}  # fmt: skip


@dataclass(frozen=True)
class TrainedStudent:
    """A student with what its use needs.

    Attributes:
        network: returns `Taps` or logits; left as it is.
        space: name or file of its space.
        genome: slot → choice.
        classes: K.
        shape: (C,H,W) of the images.
        mean: per channel, of images scaled to 0…1.
        std: likewise.
    """

    network: nn.Module
    space: str
    genome: Genome
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def export_student(folder: Path, student: TrainedStudent, images: Tensor, about: Mapping | None = None) -> list[Path]:
    """Write student.safetensors, student.pt2, student.onnx (where its packages are), diagram.txt and student.json; the paths written.

    Args:
        folder: made if missing.
        student: trained.
        images: (N,C,H,W), normalised; programs are checked against the network on them.
        about: origin and figures, kept in student.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = copy.deepcopy(student.network).cpu().eval().requires_grad_(False)
    numbers = {"mean": [float(m) for m in student.mean], "std": [float(s) for s in student.std]}
    card = {name: ",".join(map(str, values)) for name, values in numbers.items()}
    write_weights(folder / "student.safetensors", network, {"format": FORMAT, **card})
    converter = Converter(network, images.detach().cpu())
    told = {
        **numbers, "input": INPUT, "weights": weights_key(network),
        "torch_export": attempt(folder / "student.pt2", converter.torch_export),
        "onnx": attempt(folder / "student.onnx", converter.onnx), **(about or {}),
    }  # fmt: skip
    files = export_architecture(folder, student.space, student.genome, student.classes, student.shape, told)
    written = (folder / name for name in ("student.safetensors", "student.pt2", "student.onnx"))
    return [*files, *(path for path in written if path.exists())]


def export_architecture(
    folder: Path, space: str, genome: Genome, classes: int, shape: Sequence[int], about: Mapping | None = None
) -> list[Path]:
    """Write student.json and diagram.txt, all that there is of a student that was never trained; the paths written.

    Args:
        folder: made if missing.
        space: name or file of the student's space.
        genome: slot → choice.
        classes: K.
        shape: (C,H,W) of the images.
        about: kept in student.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    language = read_student_space(space)
    body = {
        "format": FORMAT, "space": space, "text": language.write(genome), "genome": genome, "definition": read_definition(space)[0],
        "cost": asdict(language.cost(genome, classes, shape[0], shape[1])), "classes": classes, "shape": list(shape),
        **(about or {}),
    }  # fmt: skip
    write_whole(folder / "diagram.txt", language.diagram(genome) + "\n")
    write_whole(folder / "student.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    return [folder / "student.json", folder / "diagram.txt"]


def attempt(path: Path, write: Callable[[Path], dict]) -> dict:
    """The file that a converter wrote and what it tells of it, or the reason why there is none; nothing reaches the terminal."""
    part = path.with_name(f"part.{path.name}")
    try:
        with quiet():
            told = write(part)
        part.replace(path)
    except Exception as error:  # converters raise anything; it concerns this file alone
        path.unlink(missing_ok=True)
        missing = isinstance(error, ModuleNotFoundError)
        reason = f"the package {error.name} is not installed" if missing else f"{type(error).__name__}: {error}".splitlines()[0]
        return {"file": None, "reason": reason[:200]}
    finally:
        part.unlink(missing_ok=True)
    return {"file": path.name, **told}


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines, no prints."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Logits(nn.Module):
    """(N,C,H,W) → (N,K) of a network that may return `Taps`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network, images)


class Session(nn.Module):
    """An ONNX program as a module: ONNX Runtime on one thread."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"images": images.numpy()})[0])


class Converter:
    """Programs of one network, each checked against it.

    Args:
        network: on the CPU, in eval mode.
        images: (N,C,H,W), normalised.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network, self.images = Logits(network), images

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """For any number of images; without the places in source files that tracing notes down."""
        example = self.images.new_zeros(2, *self.images.shape[1:])
        program = torch.export.export(self.network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program

    def torch_export(self, path: Path) -> dict:
        torch.export.save(self.program, path)
        return {"difference": self.difference(torch.export.load(path).module())}

    def onnx(self, path: Path) -> dict:
        """Checked and timed where ONNX Runtime is installed."""
        for package in ("onnx", "onnxscript"):
            import_module(package)
        names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
        torch.onnx.export(self.program, f=path, dynamo=True, external_data=False, verbose=False, **names)
        try:
            session = Session(path)
        except ModuleNotFoundError as error:
            return {"difference": None, "latency": None, "reason": f"unchecked: the package {error.name} is not installed"}
        return {"difference": self.difference(session), "latency": self.latency(session)}

    def latency(self, session: Session) -> dict[str, float]:
        """For one image on one thread, and as a ratio to the network in PyTorch, with which it took turns."""
        found = latency({"onnx": lambda: session}, lambda: self.network, self.images[:1])["onnx"]
        return {"milliseconds": round(1000 * found.seconds, 4), "ratio": round(found.ratio, 4)}

    @torch.no_grad()
    def difference(self, program: Callable[[Tensor], Tensor]) -> float:
        """The greatest of any logit, for one image and for all.

        Raises:
            ValueError: one beyond the tolerance.
        """
        batches = self.images[:1], self.images
        wanted = torch.cat([self.network(batch) for batch in batches])
        found = (torch.cat([program(batch) for batch in batches]) - wanted).abs().max().item()
        if not found <= TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise ValueError(f"its logits differ from the network's by {found:.2g}")
        return found


def read_student(path: Path) -> tuple[nn.Module, dict]:
    """A student in eval mode from student.json and the student.safetensors beside it, and all that student.json says.

    Raises:
        EvokdError: missing, corrupt or foreign files, or weights of another student.
    """
    card = _read_card(path)
    weights = path.with_suffix(".safetensors")
    state = _read_state(weights)
    network = _empty(card, path)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise EvokdError(str(weights), f"weights of {path}", str(error).splitlines()[-1].strip()[:80]) from None
    if (key := weights_key(network)) != card["weights"]:
        raise EvokdError(str(weights), f"the weights {card['weights'][:16]} that {path} names", key)
    return network.eval(), card


def _read_card(path: Path) -> dict:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}")
        if odd := [name for name, kind in _KINDS.items() if not isinstance(card[name], kind)]:
            raise ValueError(f"{odd[0]} {card[odd[0]]!r}")
    except KeyError as error:
        raise EvokdError(str(path), f"a student.json of format {FORMAT}", f"one without {error.args[0]}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise EvokdError(str(path), f"a student.json of format {FORMAT}", str(error).splitlines()[0][:80]) from None
    return card


def _empty(card: dict, path: Path) -> nn.Module:
    """The network of a card without numbers."""
    try:
        space = space_from(card["definition"], "definition")
        tree = space.tree(card["genome"])
        with torch.device("meta"):
            return space.build(tree, card["classes"], card["shape"][0])
    except EvokdError as error:
        raise EvokdError(f"{path}, {error.where}", error.expected, error.got, error.hint) from None
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        got = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        raise EvokdError(str(path), "a student that can be built", got) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError, KeyError) as error:
        raise EvokdError(str(path), "a whole safetensors file", str(error)[:80]) from None


def own_judge(executor: Serial | Workers) -> Judge:
    """The judge of this process, or one like those of the workers."""
    executor = getattr(executor, "inner", executor)
    if isinstance(executor, Serial):
        return executor.evaluate
    open_evaluator, recipe = executor.setup
    return open_evaluator(recipe)


def train_final(judge: Judge, job: StudentJob) -> nn.Module:
    """The very student of a job's first seed whose figures the judge tells: trained once more, and kept.

    Raises:
        DivergedError: as it does for the judge.
    """
    distiller, work = judge.prepared(job)
    return distiller.fit(work, job.seeds[0])[0].eval()
