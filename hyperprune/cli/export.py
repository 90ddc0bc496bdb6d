"""``hyperprune export``: a network as a file that runs without hyperprune."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperprune.cli.parsing import positive, size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hyperprune.cli.parsing import Commands, Parser
    from hyperprune.onnx_export import OnnxProof
    from hyperprune.verify import Proof

DESCRIPTION = """\
Write a network as a file that runs without hyperprune: one .onnx file for ONNX
Runtime and the like, or a .pt2 program for plain torch. Each file is run beside
the network, at two batch sizes unless the batch is fixed, before it takes its
place."""

EXAMPLES = """\
examples:
  hyperprune export slim.safetensors --model timm/resnet50 --onnx slim.onnx
  hyperprune export slim.safetensors --model my_package.models:build_net --input 3x64x64 --onnx slim.onnx --pt2 slim.pt2
  hyperprune export slim.safetensors --model timm/resnet50 --onnx slim.onnx --dynamic-size
  hyperprune export slim.safetensors --model timm/resnet50 --onnx slim.onnx --note author=me --note date=today
  hyperprune export timm/resnet50 --pretrained --onnx dense.onnx                  a dense network"""


def add(commands: Commands) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "export",
        help="write a network as ONNX, or as a program for plain torch, and check the file",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("network", metavar="NETWORK", help="checkpoint written by save_pruned, or a model's name")
    parser.add_argument("--model", metavar="NAME", help="what it was made from: timm/NAME, package.module:factory")
    parser.add_argument("--pretrained", action="store_true", help="a model by name: load the library's weights")
    _add_files(parser)
    _add_inputs(parser)
    parser.add_argument("--json", action="store_true", help="print what was checked as JSON")
    parser.set_defaults(run=partial(_run, parser))


def _add_files(parser: Parser) -> None:
    files = parser.add_argument_group("files (at least one)")
    files.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX file")
    files.add_argument("--pt2", type=Path, metavar="FILE", help="write a program for torch.export.load")
    files.add_argument("--opset", type=positive, default=18, metavar="N", help="version of ONNX's operators")
    files.add_argument("--note", type=_note, action="append", metavar="NAME=TEXT", help="goes into ONNX's metadata")
    files.add_argument(
        "--tolerance", type=float, metavar="X", help="bound on ONNX's relative error (default: 1e-4 in float32)"
    )


def _add_inputs(parser: Parser) -> None:
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--input", type=size, metavar="CxHxW", help="size of one input (default: the model's own)")
    inputs.add_argument("--batch", type=positive, default=1, metavar="N", help="batch of the example inputs")
    inputs.add_argument("--fixed-batch", action="store_true", help="allow this batch only")
    inputs.add_argument("--dynamic-size", action="store_true", help="allow any height and width (ONNX)")


def _note(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} is no note; write NAME=TEXT")
    return name, value


def _run(parser: Parser, options: argparse.Namespace) -> None:
    if not (options.onnx or options.pt2):
        parser.error("say where to: --onnx slim.onnx, --pt2 slim.pt2, or both")
    network, x = _loaded(parser, options)
    found: dict[str, Any] = {}
    if options.onnx:
        found["onnx"] = _to_onnx(network, x, options)
    if options.pt2:
        found["pt2"] = _to_pt2(network, x, options)
    if options.json:
        print(json.dumps({kind: _plain(kind, proof, options) for kind, proof in found.items()}, indent=1))
    else:
        _show(found, options)


def _loaded(parser: Parser, options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """Return the network, and random inputs that are the same every time."""
    import torch

    from hyperprune.checkpoint import load_pruned
    from hyperprune.loading import load_model

    is_file = options.network.endswith(".safetensors") or Path(options.network).is_file()
    if is_file and not options.model:
        parser.error(f"{options.network} is a checkpoint: name the dense model it was made from, --model timm/resnet50")
    if options.model and not is_file:
        parser.error(f"--model goes with a checkpoint, and there is no file {options.network}")
    loaded = load_model(options.model or options.network, pretrained=options.pretrained and not is_file)
    network = load_pruned(loaded.model, options.network) if is_file else loaded.model
    shape = (options.batch, *(options.input or loaded.input_size))
    return network, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _to_onnx(network: nn.Module, x: Tensor, options: argparse.Namespace) -> OnnxProof:
    from hyperprune.onnx_export import export_onnx

    return export_onnx(
        network,
        x,
        options.onnx,
        dynamic_batch=not options.fixed_batch,
        dynamic_size=options.dynamic_size,
        opset=options.opset,
        tolerance=options.tolerance,
        metadata=dict(options.note or ()),
    )


def _to_pt2(network: nn.Module, x: Tensor, options: argparse.Namespace) -> Proof:
    from hyperprune.program import save_program

    return save_program(network, x, options.pt2, dynamic_batch=not options.fixed_batch)


def _plain(kind: str, proof: Any, options: argparse.Namespace) -> dict[str, Any]:
    if kind == "onnx":
        return proof.to_json()
    return {
        "path": str(options.pt2),
        "bytes": options.pt2.stat().st_size,
        "relative_error": proof.relative_error,
        "tolerance": proof.tolerance,
    }


def _show(found: dict[str, Any], options: argparse.Namespace) -> None:
    from rich.console import Console

    for kind, proof in found.items():
        if kind == "onnx":
            Console(soft_wrap=not sys.stdout.isatty()).print(_onnx_table(proof))
        else:
            print(f"{options.pt2}: {options.pt2.stat().st_size / 1e6:.1f} MB, loaded again and run: {proof}")


def _onnx_table(proof: OnnxProof) -> Any:
    from rich.table import Table

    table = Table("checked", "found", title=f"{proof.path}, {proof.size / 1e6:.1f} MB, one file")
    table.add_row("onnx.checker", f"accepted, opset {proof.opset}")
    for run in proof.runs:
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in run.shapes)
        table.add_row(f"ONNX Runtime on {shapes}", str(run.proof))
    for side, shapes_by_name in (("input", proof.inputs), ("output", proof.outputs)):
        for name, shape in shapes_by_name.items():
            table.add_row(f"{side} {name}", " x ".join(map(str, shape)))
    for name, text in proof.metadata.items():
        table.add_row(name, text if len(text) <= 60 else text[:57] + "...")
    return table
