"""The zoo table as a page and a picture, from the results on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "zoo.md", ROOT / "docs" / "zoo.png"
COLOURS = {"CNN": "#0072b2", "hybrid": "#e69f00", "transformer": "#cc79a7"}  # Okabe and Ito's, told apart by all
LOW = 0.8
Record = dict[str, Any]


def write_report(results: dict[str, Record]) -> None:
    """Write docs/zoo.md and docs/zoo.png."""
    rows = {name: record for name, record in results.items() if "hyperprune" in record}
    _draw(rows)
    lines = [
        "# The zoo: any model, one by one",
        "",
        *_how(rows),
        "",
        *_summary(rows, results),
        "",
        "![Prunable share of MACs of every model, sorted, by kind](zoo.png)",
        "",
        *_troubled(rows),
        "",
        *_low(rows),
        "",
        *_rival(results),
        "",
        *_table(results),
    ]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"wrote {PAGE} and {PICTURE}")


def kind(record: Record) -> str:
    """Say whether a model is a CNN, a transformer or a hybrid, by what it multiplies.

    A transformer multiplies activations with each other and spends little on convolutions; a CNN spends nearly
    all on them.
    """
    macs = record.get("macs")
    if not macs:
        return "CNN"
    share = macs["conv"] / max(1, macs["conv"] + macs["linear"])
    attends = macs["between"] > 0.003 * (macs["conv"] + macs["linear"])
    if not attends and share > 0.2:
        return "CNN"
    return "hybrid" if share > 0.3 else "transformer"


def _how(rows: dict[str, Record]) -> list[str]:
    least = min(
        (record["hyperprune"]["power"] for record in rows.values() if "power" in record["hyperprune"]), default=0
    )
    stopped = [r["torch_pruning"] for r in rows.values() if r.get("torch_pruning", {}).get("status") == "does not run"]
    reshapes = sum("is invalid for input of size" in record["message"] for record in stopped)
    return [
        "Every classification and segmentation model of torchvision, and two or more of every module of timm, each in",
        "a process of its own (`python benchmarks/zoo.py`; the list is `benchmarks/zoo_models.txt`). Weights are",
        "random; every constant tensor (scales, zero-initialised weights, layer scales) is redrawn and batch norms get",
        "statistics of their own, so that no branch is silent.",
        "",
        "* **prunable**: share of the MACs of convolutions and linear layers that goes when every group keeps one",
        "  unit. Products between activations are not counted.",
        "* **error**: random units removed (other draws than the rehearsal's; once a half, once a fifth, once three",
        "  quarters), largest difference between the slim and the searched network, relative to the largest output.",
        "  Exact means at most 1e-5 in float32, or at most 1e-9 when both run in float64: then what float32 shows is",
        "  rounding.",
        "* **second opinion**: in two rounds, half of every group is gated to zero and noise put on all that makes it,",
        "  then the other half (`tests/second_opinion.py`, which shares no code with the analysis). It agrees if the",
        "  outputs stay and no layer reads a changed channel that the coupling does not count among the dead.",
        "* **power**: how far the first removal moved the output, relative too. With zero power no proof could fail;",
        f"  the smallest is {least:.0e}.",
        "* **Torch-Pruning**: its `BasePruner`, magnitude importance, ratio 0.5, the classifier left out, `num_heads`",
        "  and `head_dim` set as in its own timm example; its result is compared with the dense network in which the",
        "  input slices of the removed channels are zero (layer norms over the channels that are left). Other sizes",
        "  that a `forward()` reads from attributes (timm's `attn_dim`, torchvision's `hidden_dim`) are left as they",
        f"  are, though Torch-Pruning asks its users to set them: {reshapes} of the {len(stopped)} that do not run",
        "  stop at a reshape. They say that a user has work to do there, and nothing about its analysis.",
        "",
        "The machine had two cores that other work shared; each process had one thread and at most 16 GB. hyperprune",
        "had 400 s a model (one row had more), Torch-Pruning 150 s, which six of hyperprune's exact rows exceeded: a",
        "timeout is no verdict. One limit for both: `python benchmarks/zoo.py --again --timeout 400`. hyperprune's",
        "rows come from successive versions; with later ones, about 200 models were run again, all exact, and 51 rows",
        "that had changed were replaced. Most of Torch-Pruning's are from an earlier run of both tools.",
    ]


def _summary(rows: dict[str, Record], results: dict[str, Record]) -> list[str]:
    ours = [record["hyperprune"] for record in rows.values()]
    states = Counter(record["status"] for record in ours)
    exact = [record for record in ours if record["status"] == "exact"]
    text = ["## Summary", "", "| | models |", "|---|---|", f"| tried | {len(ours)} |"]
    text += [f"| {state} | {count} |" for state, count in states.most_common()]
    text += [
        f"| of these torchvision | {_share(rows, 'torchvision/')} exact |",
        f"| of these timm | {_share(rows, 'timm/')} exact |",
        f"| equal to the dense network bit for bit before pruning | {sum(r['bit_exact'] for r in exact)} |",
        f"| second opinion agrees | {_agreed(ours)} |",
        "",
        "| prunable share of | CNN | hybrid | transformer |",
        "|---|---|---|---|",
    ]
    for label, key in (
        ("all MACs", "prunable"),
        ("convolutions", "prunable_conv"),
        ("linear layers", "prunable_linear"),
    ):
        cells = [_median(r.get(key) for r in exact if kind(r) == group) for group in COLOURS]
        text.append(f"| {label}, median | {' | '.join(cells)} |")
    text.append("| models | " + " | ".join(str(sum(kind(r) == group for r in exact)) for group in COLOURS) + " |")
    seconds = sorted(record["seconds"] for record in exact)
    text += [
        "",
        f"hyperize took {median(seconds):.1f} s in the median and {seconds[-1]:.0f} s at most, on one core of machines",
        "that other work shared, some three times as slow as others. The largest error was "
        f"{max(r['error'] for r in exact):.1e}.",
    ]
    return text


def _agreed(records: list[Record]) -> str:
    opinions = [record["opinion"] for record in records if "opinion" in record]
    felt, asked = (sum(opinion[key] for opinion in opinions) for key in ("felt", "asked"))
    agreed = sum(opinion["agrees"] for opinion in opinions)
    return f"{agreed} of {len(opinions)} asked; noise arrived at {felt / max(1, asked):.0%} of the places named"


def _share(rows: dict[str, Record], prefix: str) -> str:
    found = [record["hyperprune"]["status"] == "exact" for name, record in rows.items() if name.startswith(prefix)]
    return f"{sum(found)} of {len(found)}"


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * median(known):.1f} %" if known else "–"


def _troubled(rows: dict[str, Record]) -> list[str]:
    text = ["## Not exact", ""]
    for name, record in rows.items():
        ours = record["hyperprune"]
        if ours["status"] != "exact":
            text.append(f"* `{name}`: {ours['status']}. {_one_line(ours.get('message', ''), 300)}")
    return text if len(text) > 2 else [*text, "None."]


def _low(rows: dict[str, Record]) -> list[str]:
    text = [
        f"## Less than {LOW:.0%} prunable",
        "",
        "| model | prunable | what holds most channels back |",
        "|---|---|---|",
    ]
    for name, record in rows.items():
        ours = record["hyperprune"]
        if ours["status"] == "exact" and ours["prunable"] < LOW:
            reasons = [f for f in ours["frozen"] if "output" not in f["reason"]] or ours["frozen"]
            held = "; ".join(
                f"{f['channels']} channels: {f['reason']} ({_one_line(f['first'], 110)})" for f in reasons[:2]
            )
            text.append(f"| {name} | {100 * ours['prunable']:.0f} % | {held.replace('|', '/')} |")
    return text


def _rival(results: dict[str, Record]) -> list[str]:
    theirs = [record["torch_pruning"] for record in results.values() if "torch_pruning" in record]
    text = ["## Torch-Pruning on the same models", "", "| outcome | models |", "|---|---|"]
    return text + [f"| {state} | {n} |" for state, n in Counter(record["status"] for record in theirs).most_common()]


def _table(results: dict[str, Record]) -> list[str]:
    text = [
        "## All models",
        "",
        "| model | kind | params | input | groups | units | prunable | error | power | s | MB | Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in results.items():
        ours, theirs = record.get("hyperprune", {}), record.get("torch_pruning", {})
        rival = theirs.get("status", "not run") + (f" ({theirs['error']:.0e})" if "error" in theirs else "")
        if ours.get("status") != "exact":
            text.append(f"| {name} | | | | | | {ours.get('status', 'not run')} | | | | | {rival} |")
            continue
        text.append(
            f"| {name} | {kind(ours)} | {ours['params'] / 1e6:.1f} M | {'x'.join(map(str, ours['input']))} "
            f"| {ours['groups']} | {ours['units']} | {100 * ours['prunable']:.1f} % | {ours['error']:.0e} "
            f"| {ours['power']:.2g} | {ours['seconds']:.1f} | {ours['peak_mb']} | {rival} |"
        )
    return text


def _one_line(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _draw(rows: dict[str, Record]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r["hyperprune"] for r in rows.values() if r["hyperprune"]["status"] == "exact"]
    shown.sort(key=lambda record: -record["prunable"])
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    for group, marker in zip(COLOURS, "osD", strict=True):
        at = [place for place, record in enumerate(shown) if kind(record) == group]
        shares = [100 * shown[place]["prunable"] for place in at]
        label = f"{group} ({len(at)} models, median {median(shares):.1f} %)" if at else group
        axes.scatter(at, shares, s=16, marker=marker, color=COLOURS[group], label=label, linewidths=0, alpha=0.9)
    axes.axhline(100 * LOW, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(ylim=(-2, 102), xlim=(-3, len(shown) + 2), ylabel="prunable share of MACs, %")
    axes.set_xlabel(f"{len(shown)} models of torchvision and timm, from the most to the least prunable")
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)
