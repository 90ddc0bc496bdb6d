"""Bad input gets a clear error and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from hyperprune import (
    DHP,
    Budget,
    Distillation,
    HyperpruneError,
    Lean,
    Search,
    export_pruned,
    fit_latency,
    hyperize,
    load_pruned,
    prune,
    recalibrate_,
    save_pruned,
    transfer_optimizer,
)
from hyperprune.cost import Cost
from hyperprune.errors import (
    BudgetError,
    CheckpointError,
    InputsError,
    ModelError,
    NothingPrunableError,
    ProofError,
    RecoveryError,
    SearchError,
    TraceError,
    UnknownNameError,
)
from hyperprune.generators import Generator
from hyperprune.latency import compare_latency
from hyperprune.sparsifiers import Magnitude
from tests.models import Net, assert_same, residual, sequential, snapshot, train

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def old_spectral_normed() -> nn.Module:
    model = sequential()
    nn.utils.spectral_norm(model[3])
    return model


def only_output() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1))


def fixed_stream() -> nn.Module:
    return Net({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 2, 1)}, lambda net, x: net.b(net.a(x) + x))


def uncopyable() -> nn.Module:
    model = sequential()
    model.kept = threading.Lock()
    return model


class Merging(nn.Conv2d):
    """Adds an update to its weight when it goes to eval mode, as loralib's layers do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        if self.merged == mode:
            self.weight.data += -0.5 if mode else 0.5
            self.merged = not mode
        return super().train(mode)


class Watching(nn.Sequential):
    """Keeps activations through a hook whose closure is the model."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.seen: list[Tensor] = []
        self[0].register_forward_hook(lambda module, args, output: self.seen.append(output))


def patched() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    old = model[1].forward
    model[1].forward = lambda x: old(x).clamp(-3, 3)
    return model


def listed() -> nn.Module:
    model = sequential()
    layers = [model[0]]
    model[0].register_forward_hook(lambda module, args, output: output + layers[0].weight.sum())
    return model


def defaulted() -> nn.Module:
    model = sequential()

    def watch(module: nn.Module, args: Any, output: Tensor, first: nn.Module = model[0]) -> Tensor:
        return output + first.weight.sum()

    model[0].register_forward_hook(watch)
    return model


def remembering() -> nn.Module:
    model = sequential()
    model.kept = kept = {}
    model[0].register_forward_hook(lambda module, args, output: kept.update(last=output))
    return model


class Experts(nn.Module):
    """Weights with an axis for each expert, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bihw,eij->bejhw", x, self.inner).relu()
        return torch.einsum("bejhw,eji->bihw", hidden, self.outer)


class Combined(nn.Module):
    """Two convolutions whose weights forward() multiplies into one (braindecode's ShallowFBCSPNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("oc,cihw->oihw", self.second.weight[:, :, 0, 0], self.first.weight)
        return self.head(nn.functional.conv2d(x, weight))


class Drifting(nn.Sequential):
    """Multiplies by a number that grows from call to call."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


def drifting() -> nn.Module:
    return Drifting(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def merging() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Merging(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))


class Cache:
    """Something that no tensor can be found in from outside."""


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = sequential()

    def forward(self, x: Tensor) -> tuple[Tensor, Cache]:
        return self.inner(x), Cache()


def normed_by_neighbours() -> nn.Module:
    stages = [
        layer for _ in range(5) for layer in (nn.LazyConv2d(4, 1), nn.LocalResponseNorm(3), nn.ReLU(), nn.Identity())
    ]
    model = nn.Sequential(*stages, nn.Conv2d(4, 2, 1))
    model(X)
    return model


BAD_MODELS: list[tuple[str, Callable[[], Any], type[HyperpruneError], str]] = [
    ("no layer with weights", lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), NothingPrunableError, "no parameters"),
    ("no convolution or linear layer", lambda: nn.Sequential(nn.BatchNorm2d(3)), NothingPrunableError,
     "Sequential has no convolution or linear layer|can be removed"),
    ("a weight made in forward", Combined, NothingPrunableError,
     r"weights that forward\(\) computes carry 61% of the MACs and stay\."),
    ("experts in one tensor", Experts, NothingPrunableError, "tensors of experts or heads stay whole"),
    ("orthogonal weights everywhere", lambda: nn.Sequential(*map(orthogonal, [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)])),
     NothingPrunableError, "remove_parametrizations"),
    ("only the output layer", only_output, NothingPrunableError, "0: 4 channels stay: is the model's output"),
    ("a stream tied to the input", fixed_stream, NothingPrunableError, "a: 3 channels stay: reads the model's input"),
    ("many layers that stay", normed_by_neighbours, NothingPrunableError, r"8: 4 channels.* width.*\n  and 2 more"),
    ("a DataParallel model", lambda: nn.DataParallel(sequential()), ModelError, "DataParallel.*then wrap the result"),
    ("a compiled model", lambda: torch.compile(sequential()), ModelError, "wrapped in OptimizedModule.*then wrap"),
    ("a compiled layer", lambda: nn.Sequential(nn.Linear(3, 4), torch.compile(nn.Linear(4, 2))), ModelError,
     "layer '1' is compiled"),
    ("old spectral norm", old_spectral_normed, ModelError, "layer '3' .*norm of torch's old kind. Remove it first"),
    ("a layer that edits its weight in eval()", merging, ModelError, r"layer '2' \(Merging\) changes '2.weight'"),
    ("a hook that holds the model", Watching, ModelError, r"Watching.__init__.<locals>.<lambda>.* layer '0'.*method"),
    ("a forward replaced by a function", patched, ModelError, r"patched.<locals>.<lambda>.* layer '1'"),
    ("a hook that holds a list of layers", listed, ModelError, "listed.*holds a part of the model"),
    ("a hook with a layer as default", defaulted, ModelError, "watch.*holds a part of the model"),
    ("a hook that holds the model's dict", remembering, ModelError, "remembering.*holds a part of the model"),
    ("another output at every call", drifting, ModelError, "Drifting went wrong .*even with every channel in place"),
    ("an output that holds no tensors", Caching, TraceError, "Cache.* is not a known type(.|\n)*use_cache = False"),
    ("a model that cannot be copied", uncopyable, ModelError, "Sequential cannot be copied"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), [b[1:] for b in BAD_MODELS], ids=[b[0] for b in BAD_MODELS])
def test_a_model_that_cannot_be_hyperized_is_refused_and_left_as_found(
    make: Callable[[], nn.Module], kind: type[HyperpruneError], message: str
) -> None:
    model = make().train()
    before, state = snapshot(model), torch.random.get_rng_state()
    with pytest.raises(kind, match=message):
        hyperize(model, X)
    assert_same(before, snapshot(model))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_distributed_model_is_refused(tmp_path: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(sequential())
        with pytest.raises(ModelError, match=r"DistributedDataParallel.*then wrap the result"):
            hyperize(model, X)
    finally:
        dist.destroy_process_group()


def test_a_hyper_model_is_refused_whole_and_inside() -> None:
    hyper = hyperize(sequential(), X)
    for network in (hyper, hyper.model):
        with pytest.raises(ModelError, match="already hyperized"):
            hyperize(network, X)


@pytest.mark.parametrize("thing", [None, "resnet50", lambda x: x, nn.Conv2d], ids=["none", "text", "function", "class"])
def test_what_is_no_module_is_refused(thing: Any) -> None:
    with pytest.raises(ModelError, match=r"takes a torch\.nn\.Module, not"):
        hyperize(thing, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "not NoneType"),
        (224, "not int"),
        ("image.png", "not str"),
        ((), "hold no tensor"),
        ((1, 2), "hold no tensor"),
        (X.numpy(), "not ndarray"),
        (torch.randn(2, 4, 8, 8), r"Sequential fails on the example inputs \['\(2, 4, 8, 8\) torch.float32 on cpu'\]"),
        (torch.randn(3), "Sequential fails on the example inputs"),
        (X.double(), r"fails on the example inputs .*torch.float64"),
        (X.long(), r"fails on the example inputs .*torch.int64"),
        ((X, X), "fails on the example inputs"),
        ({"image": X}, "fails on the example inputs"),
    ],
    ids=["none", "int", "text", "empty", "numbers", "numpy", "channels", "axes", "dtype", "integers", "two", "keyword"],
)
def test_inputs_that_do_not_fit_are_refused_and_the_model_is_left_as_found(inputs: Any, message: str) -> None:
    model = sequential().train()
    before = snapshot(model)
    with pytest.raises(InputsError, match=message):
        hyperize(model, inputs)
    assert_same(before, snapshot(model))


def test_inputs_on_another_device_are_refused_with_both_devices() -> None:
    model = sequential()
    with pytest.raises(InputsError, match=r"example inputs are on meta, the model on cpu.*x\.to"):
        hyperize(model, X.to("meta"))


def test_a_mask_that_torchs_transformer_must_look_at_is_refused_with_what_to_say() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)
    parts = {"stem": nn.Linear(5, 8), "decoder": nn.TransformerDecoder(layer, 1), "out": nn.Linear(8, 2)}
    mask, x = nn.Transformer.generate_square_subsequent_mask(6), torch.randn(2, 6, 5)

    def decode(net: Any, x: Tensor, mask: Tensor, **say: bool) -> Tensor:
        y = net.stem(x)
        return net.out(net.decoder(y, y, tgt_mask=mask, **say))

    with pytest.raises(TraceError, match=r"Say so in forward\(\): tgt_is_causal= beside tgt_mask="):
        hyperize(Net(parts, decode).eval(), (x, mask))
    said = Net(parts, lambda net, x, mask: decode(net, x, mask, tgt_is_causal=True)).eval()
    assert sorted(group.size for group in hyperize(said, (x, mask)).coupling.groups) == [2, 12]


def test_a_branch_on_values_is_refused_with_its_line() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.b(y) if y.sum() > 0 else net.b(-y)

    model = Net({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 2, 1)}, run)
    before = snapshot(model)
    with pytest.raises(TraceError, match=r"cannot trace Net at test_bad_inputs\.py:\d+"):
        hyperize(model, X)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, float("nan"), 0, -7], ids=repr)
@pytest.mark.parametrize("resource", ["macs", "params"])
def test_a_budget_outside_its_range_is_refused(resource: str, value: float) -> None:
    with pytest.raises(BudgetError, match=resource):
        Budget(**{resource: value})


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(macs=10**12), r"above the dense network's"),
        (Budget(params=10**12), r"above the dense network's"),
        (Budget(macs=1), r"macs=1 cannot be reached: .*lowest is [\d,]+ \([\d.]+% of dense\)"),
        (Budget(params=0.5, floor=100), r"cannot be reached: .*lowest is"),
        (Budget(macs=0.1, divisor=64), r"cannot be reached: .*lower floor= or divisor="),
    ],
    ids=str,
)
def test_a_budget_the_network_cannot_meet_is_refused_by_search_and_by_prune(budget: Budget, message: str) -> None:
    model = residual()
    hyper = hyperize(model, X)
    before = snapshot(model)
    with pytest.raises(BudgetError, match=message):
        Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1)), budget, 5)
    with pytest.raises(BudgetError, match=message):
        prune(model, X, budget)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("count", [np.int64(3_000), np.int32(3_000)])
def test_a_budget_takes_numpys_integers(count: Any) -> None:
    dense = Cost(macs=10_000, params=10_000)
    assert Budget(macs=count, floor=np.int64(2)).limits(dense) == Budget(macs=3_000).limits(dense)


def test_prune_wants_a_budget() -> None:
    with pytest.raises(BudgetError, match=r"prune takes a Budget, such as Budget\(macs=0.5\), not 0.5"):
        prune(residual(), X, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("generator", [DHP, "dhp"])
def test_what_is_no_generator_is_refused(generator: Any) -> None:
    with pytest.raises(ModelError, match="generator must be a generator, such as DHP"):
        hyperize(residual(), X, generator=generator)


def other_head(model: nn.Module) -> None:
    model.head = nn.Linear(model.head.in_features, 7)  # type: ignore[union-attr, arg-type]


def wrapped_stem(model: nn.Module) -> None:
    model.stem = nn.Sequential(model.stem)  # type: ignore[arg-type]


def no_norm(model: nn.Module) -> None:
    model.norm = nn.Identity()


@pytest.mark.parametrize("generator", [Lean(), DHP(embedding=2)], ids=["lean", "dhp"])
@pytest.mark.parametrize(("change", "layer"), [(other_head, "head"), (wrapped_stem, "stem"), (no_norm, "norm")])
def test_a_layer_replaced_after_hyperize_is_refused_before_the_search_and_before_the_export(
    change: Callable[[nn.Module], None], layer: str, generator: Generator
) -> None:
    parts = {"stem": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "head": nn.Linear(8, 2)}
    model = Net(parts, lambda net, x: net.head(net.norm(net.stem(x)).relu().mean((2, 3))))
    hyper = hyperize(model, X, generator=generator)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
    change(hyper.model)
    for start in (lambda: Search(hyper, optimizer, Budget(macs=0.5), 5), lambda: export_pruned(hyper)):
        with pytest.raises(ModelError, match=f"layer '{layer}' was replaced or wrapped after hyperize"):
            start()


def test_a_search_that_was_never_stepped_is_told_of_at_export() -> None:
    hyper = hyperize(residual(), X)
    search = Search(hyper, torch.optim.SGD(hyper.parameter_groups(lr=0.1)), Budget(macs=0.5), 5)
    with pytest.warns(UserWarning, match="stands at step 0 of 5: each search.step"):
        export_pruned(hyper)
    assert not search.done


def test_a_state_from_before_the_end_that_is_loaded_after_it_is_told_of_at_export() -> None:
    hyper = hyperize(residual(), X)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
    search = Search(hyper, optimizer, Budget(macs=0.5), 1, sparsifier=Magnitude())
    before = {name: value.clone() for name, value in hyper.state_dict().items()}
    hyper(X).sum().backward()
    optimizer.step()
    search.step()
    hyper.load_state_dict(before)
    with pytest.warns(UserWarning, match=r"The search has ended, so its units were changed afterwards"):
        export_pruned(hyper)


def test_inference_mode_around_hyperize_and_export_leaves_networks_that_train() -> None:
    with torch.inference_mode():
        hyper = hyperize(residual(), torch.randn(1, 3, 16, 16))
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    train(hyper, Search(hyper, optimizer, Budget(macs=0.5), 2), optimizer, X, 2)
    with torch.inference_mode():
        slim = export_pruned(hyper)
    slim(X).sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


def test_swapped_arguments_are_told_apart() -> None:
    hyper = hyperize(residual(), X)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.1))
    slim = export_pruned(hyper)
    swapped: list[tuple[Callable[[], Any], str]] = [
        (lambda: transfer_optimizer(slim, hyper, optimizer), "takes what hyperize returned first"),  # type: ignore[arg-type]
        (lambda: load_pruned("slim.safetensors", slim), "takes the dense model, then the file"),  # type: ignore[arg-type]
        (lambda: recalibrate_([X], slim), "takes a model, then batches"),  # type: ignore[type-var]
        (lambda: recalibrate_(slim, X), r"for a single one write \[batch\]"),
    ]
    for call, message in swapped:
        with pytest.raises(HyperpruneError, match=message):
            call()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_that_of_the_whole(training: bool) -> None:
    hyper = hyperize(residual().train(training), X)
    assert {hyper.training, hyper.bank.training, hyper.model.training} == {training}


def test_a_name_that_is_not_there_is_an_error_of_ours_and_a_key_error() -> None:
    hyper = hyperize(residual(), X)
    with pytest.raises(UnknownNameError, match=r"^the analysis met no layer 'nope'; it met: "):
        hyper.coupling.explain("nope")
    assert issubclass(UnknownNameError, KeyError)
    assert issubclass(UnknownNameError, HyperpruneError)


def test_exporting_a_plain_module_is_refused() -> None:
    with pytest.raises(ModelError, match="export_pruned takes what hyperize returned, not Sequential"):
        export_pruned(sequential())  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_gone_bad_are_an_error_at_their_step(bad: float) -> None:
    hyper = hyperize(residual(), X)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), 10)
    train(hyper, search, optimizer, X, 3)
    with torch.no_grad():
        hyper.bank.latents[5] = bad
    with pytest.raises(SearchError, match=r"latents are not finite at step 4\."):
        train(hyper, search, optimizer, X, 1)


@pytest.mark.parametrize("kind", [BudgetError, InputsError, ModelError, NothingPrunableError, SearchError, TraceError])
def test_every_error_can_be_caught_as_one(kind: type[Exception]) -> None:
    assert issubclass(kind, HyperpruneError)


MISTAKES: list[tuple[Callable[[nn.Module, Any], object], type[HyperpruneError], str]] = [
    (lambda m, x: fit_latency(m), ModelError, "fit_latency takes what hyperize returned, not Sequential"),
    (lambda m, x: export_pruned(hyperize(m, x), tolerance="1e-4"), ProofError, "tolerance must be a number above 0"),
    (lambda m, x: export_pruned(hyperize(m, x), tolerance=-1.0), ProofError, "tolerance must be a number above 0"),
    (lambda m, x: prune(m, Budget(macs=0.5), x), BudgetError, "prune takes a Budget, .* not tensor"),
    (lambda m, x: save_pruned(m, "slim.safetensors", metadata="note"), CheckpointError, "metadata must be"),
    (lambda m, x: recalibrate_(m, None), RecoveryError, "takes batches, as a data loader yields them, not NoneType"),
    (lambda m, x: Distillation(m, temperature="4"), RecoveryError, "temperature must be a number above 0, not '4'"),
    (lambda m, x: Distillation(m, weight="1"), RecoveryError, "weight must be a number between 0 and 1"),
    (lambda m, x: compare_latency(m, m, x, batches=4), InputsError, "batches and backends are lists"),
    (lambda m, x: compare_latency(m, m, x, backends="eager"), InputsError, "batches and backends are lists"),
    (lambda m, x: Budget(macs=0.5, depth="yes"), BudgetError, "depth must be True or False, not 'yes'"),
    (lambda m, x: prune(m, x, Budget(macs=1)), BudgetError, "An int is a count; for all of the dense cost say 1.0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_plausible_mistakes_are_errors_of_ours(
    call: Callable[[nn.Module, Any], object], kind: type[HyperpruneError], message: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        call(sequential(), X)
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_refuses_tensors_as_attributes_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("The tensor attribute self.feature was assigned during export.")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(TraceError, match=r"self.feature was assigned during export.\nThis version.*upgrade torch"):
        hyperize(sequential(), torch.randn(1, 3, 8, 8))
