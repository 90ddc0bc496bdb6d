"""An ONNX file computes what the network computes, says what it is, and replaces nothing unless it is right."""

from __future__ import annotations

import copy
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hyperprune import Budget, export_onnx, export_pruned, hyperize, prune
from hyperprune.errors import FileError, InputsError, MissingLibraryError, ModelError, OnnxError
from hyperprune.onnx_export import OnnxProof, OnnxSession, export

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Exported:
    slim: nn.Module
    file: Path
    proof: OnnxProof
    said: tuple[str, str]


def network() -> nn.Sequential:
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Dropout()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A slim network, exported once for all tests that only look at what came of it."""
    slim, file = prune(network(), X, Budget(macs=0.5)), tmp_path_factory.mktemp("exported") / "slim.onnx"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        proof = export_onnx(slim, X, file, dynamic_size=True, metadata={"author": "me"})
    return Exported(slim, file, proof, (out.getvalue(), err.getvalue()))


@pytest.fixture
def layer() -> nn.Module:
    return nn.Linear(4, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "slim.onnx"


def in_runtime(file: Path, **inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(file)
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def notes_in(file: Path) -> dict[str, str]:
    return {note.key: note.value for note in onnx.load(file).metadata_props}


class Fork(nn.Module):
    """Two inputs by name, a switch, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Linear(4, 3), nn.Conv2d(3, 5, 1)

    def forward(self, words: Tensor, image: Tensor, double: bool = False) -> dict[str, Any]:
        found = self.words(words) * (2 if double else 1)
        return {"out": found, "aux": [self.image(image), words.mean(1)]}


class FixesItsBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 4) + 1


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_the_file_computes_what_the_network_does_at_sizes_that_were_never_tried(exported: Exported) -> None:
    images = torch.randn(7, 3, 11, 9)
    (found,) = in_runtime(exported.file, input=images)
    torch.testing.assert_close(found, exported.slim.eval()(images), rtol=1e-5, atol=1e-6)


def test_another_batch_and_another_image_size_are_tried(exported: Exported) -> None:
    proof = exported.proof
    assert [run.shapes for run in proof.runs] == [((1, 3, 8, 8),), ((5, 3, 8, 8),), ((1, 3, 24, 16),)]
    assert all(run.proof.holds for run in proof.runs)
    assert proof.relative_error == max(run.proof.relative_error for run in proof.runs) < 1e-5
    assert proof.inputs == {"input": ("batch", 3, "height", "width")}


def test_everything_is_in_one_file_that_the_checker_accepts(exported: Exported) -> None:
    onnx.checker.check_model(exported.file, full_check=True)
    assert list(exported.file.parent.iterdir()) == [exported.file]
    assert exported.proof.size == exported.file.stat().st_size
    opsets = {entry.version for entry in onnx.load(exported.file).opset_import if entry.domain == ""}
    assert opsets == {exported.proof.opset} == {18}


def test_the_file_says_what_it_is(exported: Exported) -> None:
    notes = notes_in(exported.file)
    assert notes == dict(exported.proof.metadata)
    assert notes["author"] == "me"
    assert int(notes["hyperprune.params"]) == sum(p.numel() for p in exported.slim.parameters())
    assert int(notes["hyperprune.macs"]) > 0
    assert json.loads(notes["hyperprune.widths"])["0"] == exported.slim[0].out_channels < 8
    assert len(notes["hyperprune.plans.sha256"]) == 64


def test_the_file_names_no_folder_of_the_machine_it_was_made_on(exported: Exported) -> None:
    content = exported.file.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parent).encode() not in content


def test_the_proof_prints_what_was_checked(exported: Exported) -> None:
    assert str(exported.file) in str(exported.proof)
    assert "5 x 3 x 8 x 8: relative error" in str(exported.proof)
    assert json.loads(json.dumps(exported.proof.to_json()))["inputs"] == {"input": ["batch", 3, "height", "width"]}


def test_nothing_is_printed(exported: Exported) -> None:
    assert exported.said == ("", "")


def test_a_dense_network_has_no_widths_to_tell(layer: nn.Module, file: Path) -> None:
    export_onnx(layer, torch.randn(1, 4), file)
    assert "hyperprune.widths" not in notes_in(file)
    assert notes_in(file)["hyperprune.macs"] == "12"


def test_model_and_random_state_are_as_they_were(file: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    net[0].eval()
    net(torch.randn(2, 4)).sum().backward()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    gradients, state = [p.grad.clone() for p in net.parameters()], torch.get_rng_state()
    export_onnx(net, torch.randn(2, 4, generator=torch.Generator()), file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_several_inputs_and_outputs_keep_their_names(file: Path) -> None:
    given = {"image": torch.randn(2, 3, 4, 6), "words": torch.randn(2, 4)}
    proof = export_onnx(Fork(), given, file, dynamic_size=True)
    assert proof.inputs == {"words": ("batch", 4), "image": ("batch", 3, "height", "width")}
    assert list(proof.outputs) == ["out", "aux_0", "aux_1"]
    assert proof.runs[-1].shapes == ((2, 4), (2, 3, 12, 12))


def test_arguments_that_are_no_tensors_are_fixed_to_what_was_given(file: Path) -> None:
    fork, words, image = Fork(), torch.randn(1, 4), torch.randn(1, 3, 2, 2)
    proof = export_onnx(fork, (words, image, True), file)
    assert proof.inputs == {"words": ("batch", 4), "image": ("batch", 3, 2, 2)}
    torch.testing.assert_close(in_runtime(file, words=words, image=image)[0], 2 * fork.words(words))


def test_a_network_that_fixes_its_batch_is_refused_and_told_what_to_do(file: Path) -> None:
    with pytest.raises((OnnxError, InputsError), match="dynamic_batch=False"):
        export_onnx(FixesItsBatch(), torch.randn(2, 4), file)
    assert not file.exists()
    assert export_onnx(FixesItsBatch(), torch.randn(2, 4), file, dynamic_batch=False).inputs == {"x": (2, 4)}


def test_a_network_that_bakes_its_batch_in_while_traced_is_refused(file: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 2 else x + x.shape[0]

    with pytest.raises(OnnxError, match=r"fixes one of: batch\. Say dynamic_batch=False"):
        export_onnx(Baked(), torch.randn(2, 4), file)
    assert not file.exists()


def test_a_network_that_cannot_be_exported_at_all_says_so(file: Path) -> None:
    with pytest.raises(OnnxError, match=r"torch\.export cannot export Branches"):
        export_onnx(Branches(), torch.randn(2, 4), file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_held_to_their_own_tolerance(dtype: torch.dtype, file: Path) -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    proof = export_onnx(layer, torch.randn(1, 8, dtype=dtype), file)
    assert proof.runs[0].proof.tolerance == {torch.float64: 1e-10, torch.float16: 2e-2}[dtype]


def test_a_wrong_file_is_an_error_and_the_old_file_stays(
    layer: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(b"old")
    right = OnnxSession.outputs
    monkeypatch.setattr(OnnxSession, "outputs", lambda self, tensors: [1.01 * t for t in right(self, tensors)])
    with pytest.raises(OnnxError, match="computes something else"):
        export_onnx(layer, torch.randn(1, 4), file)
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file]
    assert export_onnx(layer, torch.randn(1, 4), file, tolerance=0.1).relative_error == pytest.approx(0.01, rel=1e-3)


def test_a_full_disk_leaves_the_old_file(layer: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: Any, draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    file.write_bytes(b"old")
    monkeypatch.setattr(export, "_write", fail)
    with pytest.raises(FileError, match="No space left"):
        export_onnx(layer, torch.randn(1, 4), file)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"old"]


def test_a_folder_is_no_file(layer: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder"):
        export_onnx(layer, torch.randn(1, 4), tmp_path)


def test_weights_beyond_two_gigabytes_are_refused_at_once(
    layer: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 10)
    with pytest.raises(OnnxError, match="2 GB at most"):
        export_onnx(layer, torch.randn(1, 4), file)


def test_a_hyperized_network_is_sent_to_export_pruned(file: Path) -> None:
    with pytest.raises(ModelError, match="export_pruned"):
        export_onnx(hyperize(network(), X), X, file)


@pytest.mark.parametrize(
    ("model", "word"),
    [("a name", "Module"), (nn.DataParallel(nn.Linear(2, 2)), "wrapped"), (nn.Linear(2, 2).bfloat16(), "bfloat16")],
    ids=["no module", "wrapped", "bfloat16"],
)
def test_what_is_no_plain_network_is_refused(model: Any, word: str, file: Path) -> None:
    with pytest.raises(ModelError, match=word):
        export_onnx(model, torch.zeros(1, 2), file)


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int, file: Path) -> None:
    with pytest.raises(OnnxError, match=f"opset {opset}"):
        export_onnx(nn.Linear(2, 2), torch.zeros(1, 2), file, opset=opset)


def test_a_newer_opset_is_written_when_asked(file: Path) -> None:
    assert export_onnx(nn.Linear(2, 2), torch.randn(1, 2), file, opset=20).opset == 20
    assert onnx.load(file).opset_import[0].version == 20


@pytest.mark.parametrize("notes", [{"epochs": 5}, {"hyperprune.macs": "0"}], ids=["a number", "a name of ours"])
def test_metadata_are_the_users_own_strings(notes: dict[str, Any], file: Path) -> None:
    with pytest.raises(OnnxError, match="metadata"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), file, metadata=notes)


def test_no_image_no_image_size(file: Path) -> None:
    with pytest.raises(InputsError, match="three to five axes"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), file, dynamic_size=True)


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_what_to_install(
    library: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=rf"{library} is not installed: pip install 'hyperprune\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), file)


@dataclass
class Found:
    reg: Tensor
    relu: Tensor


class Named(nn.Module):
    """Its outputs are called like its parameter, its input and its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.reg, self.inner, self.outer = nn.Parameter(torch.randn(4)), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        made = self.outer(torch.relu(self.inner(x)))
        return {"reg": (made * self.reg).sum(-1), "x": made + 3, "found": Found(made * 2, made * 4)}


def test_outputs_come_in_a_dataclass_and_may_be_called_like_parameters_and_inputs(tmp_path: Path) -> None:
    x = torch.randn(1, 4)
    proof = export_onnx(prune(Named(), x, Budget(macs=0.5)), x, tmp_path / "n.onnx")
    assert proof.relative_error < 1e-5
    graph = onnx.load(tmp_path / "n.onnx").graph
    made = [output.name for output in graph.output]
    assert [name.removesuffix("_out").removesuffix("_1") for name in made] == ["reg", "x", "found_reg", "found_relu"]
    assert not {*made} & {value.name for value in (*graph.input, *graph.initializer)}


def test_widths_are_those_of_the_outputs_where_weights_lie_inputs_first(file: Path) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 2, 1))
    hyper = hyperize(model, torch.randn(1, 3, 4, 4))
    hyper.bank.keep_(torch.arange(hyper.coupling.units) % 2 == 0)
    slim = export_pruned(hyper)
    widths = json.loads(export_onnx(slim, torch.randn(1, 3, 4, 4), file).metadata["hyperprune.widths"])
    assert widths == {"0": slim[0].out_channels, "2": slim[2].out_channels} == {"0": 4, "2": 3}
