"""Draw the pictures of docs/report.md: a real search on the digits, its report in a browser, and groups of networks.

    python benchmarks/report_pictures.py          about four minutes; needs chromium on the PATH and Pillow
    python benchmarks/report_pictures.py --only page      draws the last search's report again

Text shown in a terminal is recorded by rich and drawn by chromium; pages are drawn by chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageChops
from rich.console import Console
from rich.text import Text
from torch.nn import functional as F

from hyperprune import Budget, PruningReport, Search, hyperize, report
from hyperprune.demo.digits import Digits, batches, load_digits
from hyperprune.demo.resnet import resnet20
from hyperprune.demo.train import accuracy, phase, train
from hyperprune.export import export_with_proof
from hyperprune.files import write_whole
from hyperprune.latency import compare_latency
from hyperprune.reporting import report_from_json

DOCS = Path(__file__).parent.parent / "docs"
RESULT = Path(__file__).parent / "results" / "report.json"  # of the search, so that pages can be drawn again
DENSE_STEPS, SEARCH_STEPS, STEPS_AFTER, BATCH = 240, 160, 80, 64
LOOK = 8  # steps between two points of the search's course
QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
TALLEST = 6000
PHONE = 390


def main() -> None:
    """Draw all pictures, or one kind of them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=("groups", "terminal", "report", "page"), default=None)
    only = options.parse_args().only
    if only in (None, "groups"):
        for name in ("resnet18", "mobilenet_v2", "densenet121"):
            picture = DOCS / f"groups-{name}.png"
            hyperprune("inspect", f"torchvision/{name}", "--plot", str(picture))
            save_small(Image.open(picture), picture)
    if only in (None, "terminal"):
        show_terminal(
            hyperprune("inspect", "torchvision/resnet18"), "hyperprune inspect torchvision/resnet18", "inspect"
        )
    if only in (None, "report"):
        write_whole(RESULT, searched_report().dumps() + "\n")
    if only in (None, "report", "page"):
        show_report(report_from_json(json.loads(RESULT.read_text())))


def hyperprune(*arguments: str) -> str:
    """Run the command line and return what it prints."""
    command = [sys.executable, "-m", "hyperprune", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def show_report(found: PruningReport) -> None:
    """Draw a report as a terminal, a page and a phone show it."""
    page = found.to_html(DOCS / "report-example.html")
    show_terminal(found, "print(report(dense, slim, x, ...))", "report")
    shoot(page, DOCS / "report-page.png", width=1060)
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "phone.html"
        frame.write_text(on_a_phone(page))
        shoot(frame, DOCS / "report-phone.png", width=500, crop=PHONE, dark=True)


def searched_report() -> PruningReport:
    """Train ResNet-20 on the digits, search it down to half its MACs, train on for a while, and report."""
    torch.manual_seed(0)
    console, digits, dense = Console(), load_digits(), resnet20(in_channels=1)
    with phase(console, "dense network", DENSE_STEPS) as bar:
        train(dense, digits, DENSE_STEPS, 0.1, batch_size=BATCH, seed=0, bar=bar)
    hyper = hyperize(dense, digits.test_images[:1])
    optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.02, weight_decay=5e-4), momentum=0.9)
    search = Search(hyper, optimizer, Budget(macs=0.5, divisor=4), steps=SEARCH_STEPS)
    history, seen = [search.progress()], {0: test_accuracy(hyper, digits)}
    hyper.train()
    for step, (images, labels) in enumerate(batches(digits, SEARCH_STEPS + STEPS_AFTER, BATCH, 1), start=1):
        loss = F.cross_entropy(hyper(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        search.step()
        if step % LOOK == 0:
            seen[step] = test_accuracy(hyper, digits)
            history.append(search.progress())
    slim, proof = export_with_proof(hyper)
    latency = compare_latency(dense, slim, digits.test_images[:1], batches=(16, 64), backends=("eager", "onnx"))
    return report(
        dense, slim, digits.test_images[:1], history=history, accuracy=seen, latency=latency, proof=proof,
        name="ResNet-20 on handwritten digits",
    )  # fmt: skip


def test_accuracy(model: torch.nn.Module, digits: Digits) -> float:
    """Return the share of the test images classified correctly."""
    return accuracy(model, digits.test_images, digits.test_labels)


def show_terminal(content: object, title: str, name: str) -> None:
    """Draw what a terminal of 144 columns shows."""
    console = Console(record=True, width=144, file=io.StringIO())
    console.print(Text(content.rstrip()) if isinstance(content, str) else content)
    with tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder) / "terminal.html"
        drawing.write_text(f'<meta charset="utf-8"><body style="margin:0">{console.export_svg(title=title)}</body>')
        shoot(drawing, DOCS / f"{name}-terminal.png", width=1240)


def on_a_phone(page: Path) -> str:
    """Return a page that shows another as wide as a phone does (the browser's window cannot be that narrow)."""
    frame = f'<iframe src="{page.as_uri()}" style="border:0;width:{PHONE}px;height:{TALLEST}px"></iframe>'
    return f'<body style="margin:0;background:#12161b">{frame}</body>'


def shoot(page: Path, picture: Path, width: int, crop: int | None = None, dark: bool = False) -> None:
    """Draw a page with chromium and cut off the empty rest below."""
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("chromium is needed to draw pages")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", *QUIET.split(), "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--window-size={width},{TALLEST}", f"--screenshot={picture}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = Image.open(picture).convert("RGB").crop((0, 0, crop or width, TALLEST))
    empty = Image.new("RGB", image.size, image.getpixel((1, TALLEST - 1)))
    bottom = ImageChops.difference(image, empty).getbbox()
    lower = min(TALLEST, (bottom[3] if bottom else TALLEST) + 24)
    save_small(image.crop((0, 0, image.width, lower)), picture)


def save_small(image: Image.Image, picture: Path) -> None:
    """Write a picture with 200 colours (rare ones too), which is all that flat drawings need."""
    image.convert("RGB").quantize(200, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)
    print(f"{picture.name}: {image.width} x {image.height}, {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
