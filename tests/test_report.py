"""Reports count independently, add up, say what is missing, and write pages that load nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hyperprune import Budget, PruningReport, Search, hyperize, prune, report
from hyperprune.cost import count_with_fvcore
from hyperprune.errors import FileError, HyperpruneError, ModelError
from hyperprune.export import export_with_proof
from hyperprune.latency import compare_latency
from hyperprune.reporting import (
    Change,
    Latency,
    ModelReport,
    comparison_table,
    latency_from_json,
    macs_by_module,
    measure_latency,
    report_from_json,
    report_on,
)
from hyperprune.reporting.stages import MOST_STAGES, stages_of
from hyperprune.trace import ExampleInputs
from hyperprune.verify import Proof
from tests.models import residual


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


DENSE = ModelReport("dense", macs=40_000_000, params=270_000, accuracy=0.99, latency_ms={1: 2.0})
SLIM = ModelReport(
    "slim",
    macs=20_000_000,
    params=135_000,
    accuracy=0.985,
    accuracy_when_cut=0.91,
    latency_ms={1: 1.0},
    file_bytes=500_000,
    proof_error=3e-7,
)


def test_counts_are_multiply_adds_and_parameters() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    report = report_on("layer", layer, torch.zeros(1, 3, 4, 4))
    assert report.macs == 4 * 4 * 8 * 3 * 3 * 3
    assert report.params == 8 * 3 * 3 * 3 + 8


def test_a_report_keeps_the_numbers_it_is_given() -> None:
    report = report_on("x", nn.Linear(2, 2), torch.zeros(1, 2), accuracy=0.5, latency_ms={8: 1.5})
    assert (report.accuracy, report.latency_ms, report.file_bytes) == (0.5, {8: 1.5}, None)


def test_other_columns_show_their_share_of_the_first() -> None:
    text = text_of(comparison_table([DENSE, SLIM]))
    for cell in ("20.00 M (50.0%)", "135.0 k (50.0%)", "98.5% (-0.5 points)", "1.00 ms (50.0%)", "3.0e-07"):
        assert cell in text


def test_a_number_that_the_first_lacks_is_shown_without_a_share() -> None:
    text = text_of(comparison_table([DENSE, SLIM]))
    assert "500 kB" in text
    assert "500 kB (" not in text


def test_what_nobody_measured_gets_no_row() -> None:
    text = text_of(comparison_table([DENSE]))
    assert "proof" not in text
    assert "weights on disk" not in text
    assert "latency, batch 1" in text


def test_what_only_some_measured_is_a_dash_for_the_others() -> None:
    table = comparison_table([DENSE, SLIM])
    row = list(table.columns[0].cells).index("proof: relative error")
    assert list(table.columns[1].cells)[row] == "–"


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(HyperpruneError, match="nothing to compare"):
        comparison_table([])


def test_latency_is_measured_in_eval_mode_and_every_mode_is_given_back() -> None:
    modes: list[bool] = []
    first, second = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    first[0].eval()
    second.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    latency = measure_latency({"first": first, "second": second}, torch.zeros(2, 4), rounds=3)
    assert set(latency) == {"first", "second"}
    assert all(milliseconds > 0 for milliseconds in latency.values())
    assert set(modes) == {False}
    assert (first.training, first[0].training, second.training) == (True, False, True)


def test_models_take_turns() -> None:
    order: list[str] = []
    models: dict[str, nn.Module] = {"a": nn.Identity(), "b": nn.Identity()}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    measure_latency(models, torch.zeros(1), rounds=2)
    turns = list(zip(order[::2], order[1::2], strict=True))
    assert {frozenset(turn) for turn in turns} == {frozenset("ab")}
    assert turns[-2] == turns[-1][::-1]  # every other turn goes backwards


X = torch.zeros(1, 3, 16, 16)
IMAGE = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def found() -> PruningReport:
    """A report with every part, of a search that really ran."""
    torch.manual_seed(0)
    dense = residual()
    hyper = hyperize(dense, X)
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=4)
    history = [search.progress()]
    while not search.done:
        optimizer.zero_grad()
        hyper(torch.randn(2, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        search.step()
        history.append(search.progress())
    slim, proof = export_with_proof(hyper)
    latency = [Latency("eager", 1, 2.0, 1.0, (1.9, 2.5), (0.9, 1.2)), Latency("eager", 8, 8.0, 5.0)]
    return report(dense, slim, X, history=history, accuracy={0: 0.9, 4: 0.8}, latency=latency, proof=proof)


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text; an unclosed or crossed element is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def page_of(report: PruningReport, folder: Path) -> Page:
    return Page(report.to_html(folder / "report.html").read_text())


def small_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)


@pytest.mark.parametrize(
    ("build", "x"),
    [(residual, X), (torchvision.models.mobilenet_v2, IMAGE), (small_vit, IMAGE)],
    ids=["residual", "mobilenet", "vit"],
)
def test_the_counter_of_modules_the_cost_model_and_fvcore_agree_to_the_last_mac(build, x: Tensor) -> None:
    model = build()
    by_module = macs_by_module(model, ExampleInputs.of(x))
    hyper = hyperize(model, x)
    assert sum(by_module.values()) == hyper.cost.total(hyper.cost.full).macs == count_with_fvcore(model, x).macs


def test_counting_leaves_hooks_modes_and_statistics_as_they_were() -> None:
    model = residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    macs_by_module(model, ExampleInputs.of(X))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_in_one_piece_is_counted_at_the_module_that_runs_it() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    macs = macs_by_module(layer, ExampleInputs.of(torch.zeros(1, 5, 8)))
    assert macs == {"self_attn": 5 * (3 * 8 * 8 + 8 * 8), "linear1": 5 * 8 * 16, "linear2": 5 * 16 * 8}


def test_what_a_model_multiplies_itself_is_its_own() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.weight = nn.Linear(4, 4), nn.Parameter(torch.ones(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.inner(self.inner(x)), self.weight)

    model = Functional()
    assert macs_by_module(model, ExampleInputs.of(torch.zeros(1, 4))) == {"": 8, "inner": 32}
    found = report(model, model, torch.zeros(1, 4))
    assert [(layer.name, layer.width) for layer in found.layers] == [("", None), ("inner", Change(4, 4))]
    assert "(the model itself)" in str(found)


def test_stages_and_layers_add_up_to_the_totals(found: PruningReport) -> None:
    for resource in ("macs", "params"):
        total = getattr(found, resource)
        assert Change.total(getattr(stage, resource) for stage in found.stages) == total
    assert Change.total(layer.macs for layer in found.layers) == found.macs == found.counted
    assert found.macs.kept <= 0.5
    assert [stage.name for stage in found.stages] == ["stem", "bn", "block1", "block2", "fc"]


def test_widths_are_those_of_both_networks(found: PruningReport) -> None:
    widths = {layer.name: layer.width for layer in found.layers}
    assert widths["fc"] == Change(3, 3)
    assert widths["stem"] == widths["block1.conv2"] == widths["block2.conv2"]
    assert sum(width.slim < width.dense for width in widths.values() if width) >= 1


def test_the_largest_child_is_cut_into_its_parts_but_not_into_too_many() -> None:
    dense = torchvision.models.densenet121()
    layers = [name for name, module in dense.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    stages = stages_of(dense, layers)
    assert "features.denseblock3" in stages
    assert "classifier" in stages
    long = nn.Sequential(nn.Sequential(*(nn.Linear(1, 1) for _ in range(100))), nn.Linear(1, 1))
    assert stages_of(long, [name for name, _ in long.named_modules() if "." in name]) == ("0", "1")
    assert len(stages) <= MOST_STAGES


def test_the_text_tells_the_headline_the_layers_the_search_and_the_proof(found: PruningReport) -> None:
    text = str(found)
    assert text.startswith("The slim ResNet needs ")
    assert "2.00 times as fast as the dense network in eager at batch 1" in " ".join(text.split())
    for part in ("block2.conv1", "total", "Proof of slim network against the searched one: holds", "Search: step 4/4"):
        assert part in text
    assert "\x1b" not in text
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="truecolor")
    console.print(found)
    assert "\x1b[" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_was_not_given_is_said_to_be_missing(tmp_path: Path) -> None:
    dense = residual()
    bare = report(dense, prune(dense, X, Budget(macs=0.5)), X)
    assert "Proof: Not given" in str(bare)
    page = page_of(bare, tmp_path)
    assert page.text.count("Not given") == 3  # the search's course, latency, proof
    assert "proved equal" not in page.text


def test_a_proof_that_fails_is_a_warning_everywhere(tmp_path: Path) -> None:
    dense = residual()
    proofs = {"good": Proof(1e-7, 1e-4, 1), "bad": Proof(float("nan"), 1e-4, 1)}
    bad = report(dense, dense, X, proof=proofs)
    assert "Warning: the outputs differ by more than rounding explains: bad." in " ".join(str(bad).split())
    assert "Proof FAILS" in page_of(bad, tmp_path).text
    assert json.loads(bad.dumps())["proofs"]["bad"]["relative_error"] is None


def test_json_is_plain_and_holds_every_number(found: PruningReport) -> None:
    data = json.loads(found.dumps())
    assert data == json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["macs"] == {"dense": found.macs.dense, "slim": found.macs.slim}
    assert len(data["layers"]) == len(found.layers)
    assert data["history"][-1]["macs"] == found.history[-1].macs == found.macs.slim
    assert data["accuracy"] == {"0": 0.9, "4": 0.8}


def test_a_report_comes_back_from_its_json_as_it_was(found: PruningReport) -> None:
    again = report_from_json(json.loads(found.dumps()))
    assert again == found
    assert str(again) == str(found)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data | {"format": 2},
        lambda data: data | {"macs": {"dense": "many", "slim": 1}},
        lambda data: data | {"layers": [1]},
        lambda data: data | {"history": [{"step": 1}]},
        lambda data: {"groups": []},
        lambda data: [data],
        lambda data: None,
    ],
    ids=["version", "text for a number", "no layer", "half a progress", "a coupling", "a list", "nothing"],
)
def test_json_that_is_no_report_is_refused_with_one_clear_error(found: PruningReport, spoil) -> None:
    with pytest.raises(HyperpruneError, match=r"no pruning report|has format 2"):
        report_from_json(spoil(found.to_json()))


def test_times_of_the_bench_go_into_the_report_with_their_spread(found: PruningReport) -> None:
    dense = residual()
    slim = prune(dense, X, Budget(macs=0.5))
    measured = compare_latency(dense, slim, X, batches=[2], backends=["eager"], runs=5)
    (row,) = report(dense, slim, X, latency=measured).latency
    assert (row.runtime, row.batch) == ("PyTorch eager", 2)
    assert row.dense_ms == pytest.approx(measured.rows[0].dense.median, abs=1e-4)
    assert row.slim_spread == pytest.approx(measured.rows[0].slim.spread, abs=1e-4)
    assert latency_from_json(json.loads(json.dumps(measured.to_json()))) == (row,)
    with pytest.raises(HyperpruneError, match="hyperprune bench --json"):
        latency_from_json(found.to_json())


def test_a_slower_network_is_called_slower() -> None:
    dense = residual()
    text = " ".join(str(report(dense, dense, X, latency=[Latency("eager", 4, 1.0, 2.0)])).split())
    assert "It is slower than the dense network in eager at batch 4: a pass takes 2.00 times as long." in text


def test_the_page_is_well_formed_and_loads_nothing(found: PruningReport, tmp_path: Path) -> None:
    html = found.to_html(tmp_path / "report.html").read_text()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onload", "onclick"}
    assert not re.search(r"https?://|@import|url\(", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "prefers-color-scheme: dark" in html
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


def test_every_section_of_the_page_has_its_picture_and_its_numbers(found: PruningReport, tmp_path: Path) -> None:
    page = page_of(found, tmp_path)
    for title in ("What each stage costs", "Widths of the layers", "Course of the search", "Latency", "Proof"):
        assert title in page.text
    assert page.tags.count("polyline") == 4  # MACs, parameters, units; accuracy
    assert "2.00×" in page.text
    assert f"{found.proofs['slim network against the searched one'].relative_error:.1e}" in page.text
    described = [value for name, value in page.attributes if name == "aria-label"]
    assert len(described) == 2
    assert "accuracy from 90.0 to 80.0 percent" in str(described[1])


def test_both_charts_share_their_steps_when_training_went_on_after_the_search(
    found: PruningReport, tmp_path: Path
) -> None:
    longer = dataclasses.replace(found, accuracy={0: 0.9, 4: 0.7, 8: 0.8})
    html = longer.to_html(tmp_path / "report.html").read_text()
    lines = [points.split() for points in re.findall(r'<polyline [^>]*points="([^"]+)"', html)]
    macs, accuracy = lines[0], lines[-1]
    assert accuracy[1].startswith("50.00,")
    assert macs[-2].startswith("50.00,")
    assert macs[-1] == macs[-2].replace("50.00,", "100.00,")


def test_the_bars_are_as_long_as_the_numbers_say(found: PruningReport, tmp_path: Path) -> None:
    widths = [layer.width for layer in found.layers if layer.width]
    widest = max(width.dense for width in widths)
    html = found.to_html(tmp_path / "report.html").read_text()
    table = html[html.index("Widths of the layers") : html.index("Course of the search")]
    for style in ("dense", "slim"):
        drawn = [float(share) for share in re.findall(rf'<rect class="{style}" width="([\d.]+)%"', table)]
        assert drawn == pytest.approx([100 * getattr(width, style) / widest for width in widths], abs=0.01)


def test_names_are_text_wherever_they_come_from(tmp_path: Path) -> None:
    class Evil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, "<script>alert(1)</script>")(x)

    evil = "</style><img src=x onerror=alert(1)>[bold]'\"&"
    latency = [Latency(evil, 1, 1.0, 1.0)]
    model = Evil()
    found = report(model, model, torch.zeros(1, 4), name=evil, latency=latency, proof={evil: Proof(0.0, 1e-4, 1)})
    page = page_of(found, tmp_path)
    assert not {"script", "img", "bold"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") == 2  # the stage and the layer
    assert evil in page.text
    assert "<script>alert(1)</script>" in str(found)
    assert evil in " ".join(str(found).split())


@pytest.mark.parametrize("layers", [1, 4, 64, 65, 500])
def test_networks_of_any_length_get_a_page_and_tables(layers: int, tmp_path: Path) -> None:
    dense = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    found = report(dense, dense, torch.zeros(1, 2))
    page = page_of(found, tmp_path)
    assert len(found.layers) == layers
    assert ("details" in page.tags) == (layers > 64)
    assert f"{layers} layers: to_json()" in str(found) or layers <= 64
    assert page.text.count("total") == 1


def test_a_folder_in_the_place_of_the_page_is_an_error_and_a_failed_write_keeps_the_old(
    found: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileError, match="is a folder"):
        found.to_html(tmp_path)
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left"):
        found.to_html(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_networks_that_do_not_belong_together_are_refused() -> None:
    dense = residual()
    slim = prune(dense, X, Budget(macs=0.5))
    with pytest.raises(ModelError, match="Pass the dense network first"):
        report(slim, dense, X)
    with pytest.raises(ModelError, match="not the same architecture"):
        report(nn.Sequential(nn.Linear(4, 4)), dense, X)
    with pytest.raises(ModelError, match="export_pruned"):
        report(dense, hyperize(dense, X), X)


def test_numbers_that_cannot_be_shown_are_refused() -> None:
    dense = residual()
    with pytest.raises(HyperpruneError, match=r"search\.progress\(\)"):
        report(dense, dense, X, history=[0.5])  # type: ignore[list-item]
    with pytest.raises(HyperpruneError, match="from 0 to 1"):
        report(dense, dense, X, accuracy={0: 93.0})
    with pytest.raises(HyperpruneError, match="above zero"):
        Latency("eager", 1, 1.0, 0.0)


def test_a_model_that_fvcore_cannot_run_is_reported_without_a_second_opinion() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, *, image: Tensor) -> Tensor:
            return self.fc(image)

    found = report(Keyword(), Keyword(), {"image": torch.zeros(1, 4)})
    assert (found.macs, found.counted) == (Change(8, 8), None)
    assert "could not run this model" in " ".join(str(found).split())


def test_the_report_in_the_docs_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    space = {
        "model": residual(),
        "loader": [(torch.randn(4, 3, 16, 16), torch.randint(0, 3, (4,)))] * 3,
        "x": X,
        "test_accuracy": lambda model: 0.5,
    }
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, space)
    found = space["found"]
    assert isinstance(found, PruningReport)
    assert found.history[-1].macs_fraction <= 0.5
    assert [row.batch for row in found.latency] == [1, 8]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
