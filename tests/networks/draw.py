"""Random descriptions. Any list of numbers stands for some network; fewer and smaller numbers, for a simpler one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.networks.description import Description, Step
from tests.networks.network import Network
from tests.networks.part import IMAGE, PARTS, Choices, Options, Shape

Gene = tuple[int, ...]
LENGTH = 8
LARGEST = 2519
LARGEST_NETWORK = 20_000
OFTEN = {"conv": 4, "norm": 3, "activation": 2, "join": 5, "cat": 3, "attention": 2, "mlp": 2, "again": 2, "split": 2}
RARE = ("reads_all", "across", "spatial_gate", "blown_up")
TIED = ("conv", "depthwise", "transposed", "linear")


def _menu() -> list[str]:
    """Return the kinds of steps, each as often as it is to be drawn, plain ones first."""
    kinds = [*OFTEN, *(kind for kind in PARTS if kind not in OFTEN), "tied"]
    return [kind for kind in kinds for _ in range(2 * OFTEN.get(kind, 1) - (kind in RARE))]


MENU = _menu()


def describe(settings: Gene, genes: Sequence[Gene]) -> Description:
    """Return the network that a list of genes stands for: each adds one step, where one fits."""
    choices = Choices(settings)
    size, batch = choices.of((4, 8, 6, 4)), choices.of((2, 1, 2))
    image, tokens, vector = (batch, 3, size, size), (batch, size, 5), (batch, 5)
    inputs = choices.of(((image,), (image,), (tokens,), (image, image), (image, vector), (tokens, vector)))
    ends = choices.of(("joined", "joined", "separate", "joined", "separate", "raw"))
    network = Network(inputs, ends)
    for at, shape in enumerate(inputs):
        network.append_(_stem(at, shape, choices))
    for gene in genes:
        step = _step(network, Choices(gene))
        if step is not None and sum(p.numel() for p in network.parameters()) < LARGEST_NETWORK:
            network.append_(step)
    generator, attention = choices.of(("lean", "lean", "lean", "dhp")), choices.of(("heads", "heads", "width"))
    return Description(inputs, network.steps, ends, generator, attention, seed=sum(settings) % 1000)


def genome(seed: int) -> tuple[Gene, list[Gene]]:
    """Return settings and genes drawn by a seed."""
    rng = random.Random(seed)
    settings, *genes = [tuple(rng.randint(0, LARGEST) for _ in range(LENGTH)) for _ in range(rng.randint(4, 14))]
    return settings, genes


def drawn(seed: int) -> Description:
    """Return the network of a seed."""
    return describe(*genome(seed))


def shrunk(seed: int, fails: Callable[[Description], bool]) -> Description:
    """Return the smallest network found that still fails: genes are dropped, then numbers set to zero, one by one."""
    settings, genes = genome(seed)
    at = 0
    while at < len(genes):
        fewer = genes[:at] + genes[at + 1 :]
        genes, at = (fewer, 0) if fails(describe(settings, fewer)) else (genes, at + 1)
    for row, gene in enumerate([settings, *genes]):
        for place in range(len(gene)):
            plain = [settings, *genes]
            plain[row] = (*plain[row][:place], 0, *plain[row][place + 1 :])
            if plain[row] != [settings, *genes][row] and fails(describe(plain[0], plain[1:])):
                settings, *genes = plain
    return describe(settings, genes)


def _stem(at: int, shape: Shape, choices: Choices) -> Step:
    """Every input enters through a layer, so that there are channels to remove."""
    if len(shape) != IMAGE:
        return Step("linear", (at,), {"out": choices.of((8, 6, 12)), "bias": True})
    options = {"kernel": 3, "groups": 1, "stride": 1, "dilation": 1, "bias": True}
    return Step("conv", (at,), {"out": choices.of((8, 6, 12)), **options})


def _step(network: Network, choices: Choices) -> Step | None:
    shapes = dict(enumerate(network.shapes))
    loose = network.loose_ends()[::-1]
    at = choices.of([*loose, *list(shapes)[: network.inputs - 1 : -1]])
    shape = shapes[at]
    kind = choices.of([k for k in MENU if k in ("again", "tied") or len(shape) in PARTS[k].ranks])
    if kind in ("again", "tied"):
        return _reuse(network, kind, at, choices)
    partners = PARTS[kind].partners(shape, shapes)
    takes = (at,)
    if partners is not None:
        others = [p for p in loose if p in partners and p != at] or partners[::-1]
        if not others:
            return None
        takes = (at, choices.of(others))
    options = PARTS[kind].options(shape, choices)
    return None if options is None or shape[-1] * (len(shape) == IMAGE) > 16 else Step(kind, takes, options)


def _reuse(network: Network, kind: str, at: int, choices: Choices) -> Step | None:
    """Use an earlier part, or its weight, once more: on a value with as many channels, and of the same shape."""
    fits = [
        number
        for number, step in enumerate(network.steps)
        if network.shapes[step.takes[0]] == network.shapes[at] and _is_reusable(step, kind)
    ]
    options: Options = {"step": choices.of(fits)} if fits else {}
    return Step(kind, (at,), options) if fits else None


def _is_reusable(step: Step, kind: str) -> bool:
    if kind == "tied":
        return step.kind in TIED
    return step.kind not in ("again", "tied") and len(step.takes) == 1
