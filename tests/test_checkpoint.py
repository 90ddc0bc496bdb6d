"""Checkpoints: what is saved comes back bit for bit, and what cannot is refused."""

from __future__ import annotations

import copy
import importlib
import json
import os
import random
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hyperprune.checkpoint.document as documents
from hyperprune import Budget, export_pruned, hyperize, load_pruned, prune, save_pruned
from hyperprune.checkpoint import Document, read_document
from hyperprune.checkpoint.storage import CHECKSUM, DOCUMENT
from hyperprune.checkpoint.weights import digest, ties_among
from hyperprune.errors import CheckpointError, FileError, ModelError
from hyperprune.plan import Slice, WidthPlan, plans_of
from tests import checkpoint_fuzz as fuzz
from tests.fresh import in_fresh_process
from tests.models import SMALL, ResNet, assert_same, random_half, residual, sequential, small, snapshot

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = Budget(macs=0.5)


class Tied(nn.Module):
    """One block used twice, and two linear layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.second = self.first
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(self.stem(x))).mean((2, 3))
        return self.b(torch.relu(self.a(y)))


class Derived(nn.Module):
    """Keeps a buffer along its channels that no state_dict holds, and one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("ramp", torch.linspace(1, 2, 8), persistent=False)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.ramp + self.shift)


def halved(model: nn.Module, x: Tensor = X) -> nn.Module:
    hyper = hyperize(model, x)
    hyper.bank.keep_(random_half(hyper, torch.Generator().manual_seed(3)))
    return export_pruned(hyper)


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    """Same class, same tensors under the same names, same ties."""
    assert type(found) is type(expected)
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    assert ties_among(a) == ties_among(b)
    assert plans_of(found) == plans_of(expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A slim network and its file; no test may change them."""
    torch.manual_seed(0)
    slim = prune(residual(), X, HALF).eval()
    return slim, save_pruned(slim, tmp_path_factory.mktemp("saved") / "slim.safetensors", metadata={"note": "first"})


@pytest.mark.parametrize("name", SMALL)
def test_a_slim_network_comes_back_bit_for_bit_in_a_fresh_one(name: str, tmp_path: Path) -> None:
    slim = halved(*small(name)).eval()
    fresh, x = small(name)
    before = snapshot(fresh.eval())
    found = load_pruned(fresh, save_pruned(slim, tmp_path / "slim.safetensors"))
    assert_equal(found, slim)
    assert torch.equal(found(x), slim(x))
    assert not torch.equal(found(x), fresh(x))
    assert_same(before, snapshot(fresh))


def test_saving_changes_nothing(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    slim, _ = saved
    before = snapshot(slim)
    save_pruned(slim, tmp_path / "again.safetensors")
    assert_same(before, snapshot(slim))


def test_a_network_pruned_twice_comes_back(tmp_path: Path) -> None:
    twice = halved(halved(residual(width=12, inner=16)))
    found = load_pruned(residual(width=12, inner=16), save_pruned(twice, tmp_path / "a.safetensors"))
    assert len(plans_of(found)) == 2
    assert_equal(found, twice)


def test_a_dense_network_has_no_plans_and_comes_back_too(tmp_path: Path) -> None:
    path = save_pruned(dense := residual(), tmp_path / "dense.safetensors")
    assert read_document(path).plans == ()
    assert_equal(load_pruned(residual(), path), dense)


def test_a_slim_part_comes_back_within_the_whole(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Upsample(scale_factor=2), residual())
    whole[1] = halved(whole[1])
    found = load_pruned(nn.Sequential(nn.Upsample(scale_factor=2), residual()), save_pruned(whole, tmp_path / "a.st"))
    assert torch.equal(found.eval()(X), whole.eval()(X))
    (plan,) = plans_of(found)
    assert all(cut.tensor.startswith("1.") for cut in plan.slices)
    again = load_pruned(nn.Sequential(nn.Upsample(scale_factor=2), residual()), save_pruned(found, tmp_path / "b.st"))
    assert torch.equal(again.eval()(X), whole(X))


def test_shared_weights_are_kept_once_and_stay_shared(tmp_path: Path) -> None:
    slim = halved(Tied())
    path = save_pruned(slim, tmp_path / "tied.safetensors")
    assert sum(tensor.numel() for tensor in load_file(path).values()) < sum(
        t.numel() for t in slim.state_dict().values()
    )
    found = load_pruned(Tied(), path)
    assert_equal(found, slim)
    assert found.first is found.second
    assert found.a.weight is found.b.weight
    assert found.first[0].out_channels < 8


def test_weights_shared_in_the_file_but_not_in_the_model_are_refused(tmp_path: Path) -> None:
    path = save_pruned(Tied(), tmp_path / "tied.safetensors")
    apart = Tied()
    apart.b.weight = nn.Parameter(apart.a.weight.detach().clone())
    with pytest.raises(CheckpointError, match="tie different tensors"):
        load_pruned(apart, path)
    with pytest.raises(CheckpointError, match="tie different tensors"):
        load_pruned(Tied(), save_pruned(apart, tmp_path / "apart.safetensors"))


def test_a_buffer_that_is_not_kept_is_the_fresh_models_and_sliced(tmp_path: Path) -> None:
    slim = halved(Derived(), torch.randn(2, 4))
    assert len(slim.ramp) < 8
    path = save_pruned(slim, tmp_path / "a.safetensors")
    assert "ramp" not in load_file(path)
    found = load_pruned(Derived(), path)
    assert torch.equal(found.ramp, slim.ramp)
    x = torch.randn(5, 4)
    assert torch.equal(found(x), slim(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    slim = halved(Derived(), torch.randn(2, 4)).to(dtype)
    found = load_pruned(Derived(), save_pruned(slim, tmp_path / "a.safetensors"))
    assert_equal(found, slim)
    assert found.ramp.dtype == dtype
    x = torch.randn(5, 4, dtype=dtype)
    assert torch.equal(found(x), slim(x))


def test_a_model_in_half_precision_is_filled_to_the_last_bit(saved: tuple[nn.Module, Path]) -> None:
    assert_equal(load_pruned(residual().half(), saved[1]), saved[0])


def test_other_things_are_those_of_the_model(saved: tuple[nn.Module, Path]) -> None:
    slim, path = saved
    fresh = residual().train().to(memory_format=torch.channels_last)
    fresh.block1.eval()
    fresh.stem.requires_grad_(False)
    found = load_pruned(fresh, path)
    assert [m.training for m in found.modules()] == [m.training for m in fresh.modules()]
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in fresh.parameters()]
    assert found.block1.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal(found, slim)


def test_odd_layouts_survive(tmp_path: Path) -> None:
    slim = halved(residual()).eval().to(memory_format=torch.channels_last)
    slim.fc.weight = nn.Parameter(slim.fc.weight.detach().t().contiguous().t())
    assert not slim.fc.weight.is_contiguous()
    found = load_pruned(residual().eval().to(memory_format=torch.channels_last), save_pruned(slim, tmp_path / "a.st"))
    assert_equal(found, slim)


def test_parametrized_and_special_values_survive(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4))

    model = made()
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]))
    found = load_pruned(made(), save_pruned(model, tmp_path / "a.safetensors"))
    assert torch.equal(found[0].weight, model[0].weight)
    assert torch.equal(found[1].running_mean.view(torch.int32), model[1].running_mean.view(torch.int32))


def test_a_name_builds_the_model(tmp_path: Path) -> None:
    import torchvision

    slim = torchvision.models.get_model("squeezenet1_1")
    found = load_pruned("torchvision/squeezenet1_1", save_pruned(slim, tmp_path / "a.safetensors"))
    assert_equal(found, slim)


def test_metadata_and_the_plan_can_be_read_alone(saved: tuple[nn.Module, Path]) -> None:
    slim, path = saved
    document = read_document(path)
    assert document.metadata == {"note": "first"}
    assert document.model == "tests.models.ResNet"
    assert document.plans == plans_of(slim)
    assert json.loads(safe_open(path, "pt").metadata()[DOCUMENT])["version"] == documents.VERSION


@pytest.mark.parametrize("bad", [{"a": 1}, {1: "a"}])
def test_metadata_must_be_strings(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a string"):
        save_pruned(nn.Linear(1, 1), tmp_path / "a.safetensors", metadata=bad)
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    """Keeps something in its state that is not a tensor."""

    def get_extra_state(self) -> object:
        return {"name": "x"}


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: hyperize(residual(), X), ModelError, "export_pruned"),
        (lambda: hyperize(residual(), X).model, ModelError, "export_pruned"),
        (lambda: torch.compile(residual()), ModelError, r"model\._orig_mod"),
        (lambda: nn.DataParallel(residual()), ModelError, r"model\.module"),
        (lambda: {"weight": torch.ones(1)}, ModelError, "not dict"),
        (Named, CheckpointError, "_extra_state"),
    ],
)
def test_what_cannot_be_saved(made: Callable[[], Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        save_pruned(made(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: hyperize(residual(), X), "hyperized"),
        (lambda: nn.DataParallel(residual()), r"model\.module"),
        (lambda: prune(residual(), X, HALF), "slim already"),
        (lambda: residual().to("meta"), "meta device"),
        (lambda: "nonsense", "names no model"),
    ],
)
def test_what_cannot_be_filled(made: Callable[[], Any], message: str, saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ModelError, match=message):
        load_pruned(made(), saved[1])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (sequential, r"holds a tests\.models\.ResNet, the model given is a torch\.nn\.modules\.container\.Sequential"),
        (lambda: residual(inner=9), "the plan expects 8 positions along axis 0 of 'block1.conv1.weight'"),
        (lambda: residual(classes=4), r"fc\.weight: the file has \(3, .*, the model needs \(4, "),
    ],
)
def test_another_architecture_is_named(made: Callable[[], nn.Module], message: str, saved: Any) -> None:
    fresh = made()
    before = snapshot(fresh)
    with pytest.raises(CheckpointError, match=message):
        load_pruned(fresh, saved[1])
    assert_same(before, snapshot(fresh))


class Attention(nn.Module):
    """The same weights whatever the number of heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.wide = heads, 24 // heads
        self.qkv, self.proj = nn.Linear(5, 72), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.wide)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def test_sizes_that_no_tensor_tells_must_fit_too(tmp_path: Path) -> None:
    x = torch.randn(2, 7, 5)
    hyper = hyperize(Attention(heads=4), x)
    hyper.bank.remove_(torch.arange(hyper.coupling.units) == 0)
    slim = export_pruned(hyper)
    assert slim.heads == 3
    path = save_pruned(slim, tmp_path / "a.safetensors")
    assert read_document(path).sizes[""]["heads"] == 3
    assert torch.equal(load_pruned(Attention(heads=4), path)(x), slim(x))
    with pytest.raises(CheckpointError, match="heads: it is 3 in the file, 2 in the model"):
        load_pruned(Attention(heads=2), path)


def test_missing_and_surplus_tensors_are_named(saved: tuple[nn.Module, Path]) -> None:
    more = residual()
    more.extra = nn.Linear(1, 1, bias=False)
    with pytest.raises(CheckpointError, match=r"extra\.weight: not in the file"):
        load_pruned(more, saved[1])
    fewer = residual()
    fewer.drop, fewer.bn.num_batches_tracked = nn.Identity(), None
    with pytest.raises(CheckpointError, match=r"bn\.num_batches_tracked: in the file, not in the model"):
        load_pruned(fewer, saved[1])


class Moved(ResNet):
    """The same network under another name."""


def test_a_class_that_was_moved_can_be_said_so(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"moved_from='tests\.models\.ResNet'"):
        load_pruned(Moved(), saved[1])
    found = load_pruned(Moved().eval(), saved[1], moved_from="tests.models.ResNet")
    assert torch.equal(found(X), saved[0](X))


def test_a_class_of_a_script_is_the_same_in_a_module(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResNet, "__module__", "__main__")
    assert torch.equal(load_pruned(residual().eval(), saved[1])(X), saved[0](X))


class Versioned(nn.Linear):
    """Asks which version of itself a state comes from, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_of_modules_are_handed_on(tmp_path: Path) -> None:
    model = nn.Sequential(Versioned(2, 3))
    assert_equal(load_pruned(nn.Sequential(Versioned(2, 3)), save_pruned(model, tmp_path / "a.st")), model)


def test_a_load_that_changes_weights_is_noticed(saved: tuple[nn.Module, Path], monkeypatch: Any) -> None:
    def rounding(self: nn.Module, state: dict[str, Tensor], strict: bool = True) -> Any:
        return nn.Module.load_state_dict(self, {name: value.round() for name, value in state.items()}, strict)

    monkeypatch.setattr(ResNet, "load_state_dict", rounding)
    with pytest.raises(CheckpointError, match="changed the weights"):
        load_pruned(residual(), saved[1])


def resigned(path: Path, edit: Callable[[Any], Any]) -> Path:
    """Edit the document of a file, and make its checksum right again."""
    tensors = load_file(path)
    content = json.loads(safe_open(path, "pt").metadata()[DOCUMENT])
    text = json.dumps(content if (found := edit(content)) is None else found)
    save_file(tensors, path, {DOCUMENT: text, CHECKSUM: digest(text, tensors)})
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(version=99), "version 99 of the format, this hyperprune reads 1 to 1. Update"),
        (lambda d: d.update(version=0), "version 0 of the format"),
        (lambda d: d.update(version=True), "version: True must be an integer"),
        (lambda d: d.update(format="other"), "format is 'other'"),
        (lambda d: d.update(surprise=1), "unknown entry 'surprise'"),
        (lambda d: d.__delitem__("tied"), "lacks 'tied'"),
        (lambda d: d["plans"].extend([d["plans"][0]] * 1000), "1,001 items; at most 1,000"),
        (lambda d: d["plans"].append(d["plans"][0]), "the plan expects"),
        (lambda d: d["plans"][0]["slices"].append(d["plans"][0]["slices"][0]), "slices one axis of one tensor twice"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(0, "forward"), "the model has no 'forward'"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(1, -1), "-1 must be an integer from 0"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(1, 9), "along axis 9"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(3, [0, 2, 1]), "must rise"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(3, [0, 0]), "must rise"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(3, [True]), "True must be an integer"),
        (lambda d: d["plans"][0]["slices"][0].__setitem__(3, [10**6]), "below the axis's length"),
        (lambda d: d["plans"][0]["resizes"].append(["block1", 3, 4]), "a size grows"),
        (lambda d: d["plans"][0]["resizes"].append(["nowhere", 4, 3]), "the model has no 'nowhere'"),
        (lambda d: d["plans"][0]["resizes"].append(["block1", [4, 4], [3]]), "as many sizes"),
        (lambda d: d.update(sizes={"stem": {"groups": True}}), "True must be an integer"),
        (lambda d: d.update(sizes={"stem": {"groups": 2}}), r"stem\.groups: it is 2 in the file, 1 in the model"),
        (lambda d: d.update(sizes={"stem": {"nothing": [2]}}), r"it is \[2\] in the file, None in the model"),
        (lambda d: d.update(sizes={"nowhere": {"groups": 2}}), "the model has no 'nowhere'"),
        (lambda d: d.update(tied=[["stem.weight", "bn.weight"]]), "share a tensor"),
        (lambda d: d.update(tied=[["stem.weight"]]), "two names or more"),
        (lambda d: d.update(model="x" * 2**21), "characters; at most"),
        (lambda d: [], "must be an object"),
    ],
)
def test_a_forged_document_is_refused(edit: Any, message: str, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    path = tmp_path / "forged.safetensors"
    path.write_bytes(saved[1].read_bytes())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pruned(residual(), resigned(path, edit))
    assert str(caught.value).startswith(str(path))


def test_a_document_too_long_is_neither_written_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Document("x" * 200).to_text()
    monkeypatch.setattr(documents, "LONGEST_TEXT", 100)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        Document.from_text(text)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        Document("x" * 200).to_text()


def test_a_document_keeps_every_kind_of_plan() -> None:
    plan = WidthPlan((Slice("a", 0, 3, (0, 2)), Slice("a", 1, 2, ())))
    sizes = {"attention": {"heads": 2, "split": [1, 2]}}
    document = Document("m.C", (plan, plan), sizes, (("a", "b"),), {"c": "torch.int64"}, {"ü": "\n\ud800"})
    assert Document.from_text(document.to_text()) == document


@pytest.mark.parametrize("kind", ["folder", "missing", "pipe", "empty", "text", "plain", "pickle"])
def test_files_of_another_kind_are_refused(kind: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "file", tmp_path / "touched"

    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    makers: dict[str, Callable[[], Any]] = {
        "folder": path.mkdir,
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(path),
        "empty": path.touch,
        "text": lambda: path.write_text("no tensors here, only words"),
        "plain": lambda: save_file({"weight": torch.ones(1)}, path),
        "pickle": lambda: torch.save({"weight": Harmful()}, path),
    }
    makers[kind]()
    with pytest.raises(CheckpointError, match=str(path)):
        load_pruned(residual(), path)
    assert not touched.exists()


def load_or_refuse(dense: nn.Module, path: Path, slim: nn.Module) -> str:
    """Load a damaged file: it must be refused in one way, or be what it was before."""
    try:
        found = load_pruned(dense, path)
    except CheckpointError:
        return "refused"
    assert_equal(found, slim)
    assert torch.equal(found(X), slim(X))
    return "equal"


@pytest.fixture
def watchdog() -> Any:
    """Turn a hang into a failure."""

    def bark(*_: object) -> None:
        raise TimeoutError("a damaged file made load_pruned hang")

    before = signal.signal(signal.SIGALRM, bark)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("damage", fuzz.DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused_or_loads_equal(damage: Any, saved: Any, tmp_path: Path, watchdog: Any) -> None:
    """Nine kinds of damage, 230 seeds each: 2,070 files."""
    (slim, original), path, dense = saved, tmp_path / "damaged.safetensors", residual().eval()
    data, outcomes = original.read_bytes(), Counter()
    for seed in range(230):
        damaged = damage(data, random.Random(f"{damage.__name__} {seed}"))
        path.write_bytes(damaged)
        watchdog(20)
        outcomes[load_or_refuse(dense, path, slim)] += 1
        watchdog(0)
    assert outcomes["refused"] >= 100


def test_an_edited_document_with_a_right_checksum_never_changes_weights(saved: Any, tmp_path: Path) -> None:
    """What somebody forges on purpose may say something else, but the weights are still those of the file."""
    (slim, original), path, dense = saved, tmp_path / "forged.safetensors", residual().eval()
    data, refused = original.read_bytes(), 0
    for seed in range(200):
        path.write_bytes(data)
        resigned(path, lambda content, seed=seed: fuzz.edit_value(content, random.Random(seed)))
        try:
            found = load_pruned(dense, path)
        except CheckpointError:
            refused += 1
        else:
            state = slim.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    assert refused > 100


def in_child(work: Callable[[], object]) -> int:
    """Run something in a forked process, and return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def wide(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600))


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_file(tmp_path: Path) -> None:
    versions, path, rng, drafts = (wide(0), wide(1)), tmp_path / "slim.safetensors", random.Random(0), 0
    save_pruned(versions[0], path)

    def save_for_ever() -> None:
        while True:
            for version in versions:
                save_pruned(version, path)

    for _ in range(12):
        pid = in_child(save_for_ever)
        time.sleep(0.02 + 0.05 * rng.random())
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        found = load_pruned(wide(2), path)
        assert any(torch.equal(found[0].weight, version[0].weight) for version in versions)
        drafts += len(list(tmp_path.glob(".slim-*")))
    assert drafts > 0, "no kill ever met a write: the test shows nothing"


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """The kernel refuses to let files grow, as on a full disk."""
    path = save_pruned(wide(0), tmp_path / "slim.safetensors")
    before = path.read_bytes()

    def save_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
        with pytest.raises(FileError, match="was not written"):
            save_pruned(wide(1), path)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(save_on_a_full_disk), 0)[1]) == 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder"):
        save_pruned(nn.Linear(1, 1), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"):
        save_pruned(nn.Linear(1, 1), tmp_path / "file" / "slim.safetensors")


def test_two_saves_at_once_do_not_meet(tmp_path: Path) -> None:
    path, versions = tmp_path / "slim.safetensors", (wide(0), wide(1))
    threads = [threading.Thread(target=save_pruned, args=(version, path)) for version in versions * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load_pruned(wide(2), path)
    assert any(torch.equal(found[2].weight, version[2].weight) for version in versions)


@pytest.mark.parametrize("name", ["residual", "grouped"])
def test_outputs_are_equal_in_fresh_processes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own three stages; the last one runs where hyperprune cannot be imported."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    stages = importlib.import_module("checkpoints").STAGES
    records = {stage: in_fresh_process(work, f"tests/{name}", tmp_path) for stage, work in stages.items()}
    assert records["save"]["params"] < records["save"]["dense_params"]
    assert records["load"]["bit_equal"]
    assert records["run"]["bit_equal"]


def test_copies_of_a_loaded_network_can_be_pruned_further(saved: tuple[nn.Module, Path]) -> None:
    found = copy.deepcopy(load_pruned(residual(), saved[1]))
    slimmer = prune(found, X, Budget(macs=0.7))
    assert sum(p.numel() for p in slimmer.parameters()) < sum(p.numel() for p in found.parameters())
    assert len(plans_of(slimmer)) == 2
