"""A report's numbers in words, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hyperprune.reporting.change import Change

if TYPE_CHECKING:
    from hyperprune.reporting.data import LayerChange, PruningReport
    from hyperprune.verify import Proof

NO_PROOF = "Not given: pass proof=, from slim, proof = export_with_proof(hyper)."
NO_SECOND_OPINION = "fvcore, the second opinion on MACs, could not run this model."


def amount(count: float) -> str:
    """Write a count with three digits and k, M or G.

    Example:
        >>> [amount(n) for n in (999, 270_896, 1_814_073_344)]
        ['999', '271 k', '1.81 G']
    """
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{_three_digits(count / size)} {letter}"
    return f"{count:.0f}"


def _three_digits(value: float) -> str:
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places}f}"


def percent(share: float) -> str:
    """Write a share, with one decimal.

    Example:
        >>> percent(0.4995)
        '50.0%'
    """
    return f"{100 * share:.1f}%"


def kept(change: Change) -> str:
    """Write the share that is left, or a dash where there was nothing."""
    return percent(change.kept) if change.dense else "–"


def steps(change: Change) -> str:
    """Write both numbers, or the one if nothing changed.

    Example:
        >>> from hyperprune.reporting import Change
        >>> steps(Change(64, 31)), steps(Change(64, 64))
        ('64 → 31', '64')
    """
    return f"{change.dense:,.0f}" if change.dense == change.slim else f"{change.dense:,.0f} → {change.slim:,.0f}"


def amounts(change: Change) -> str:
    """Write both numbers as amounts, or the one if nothing changed."""
    if change.dense == change.slim:
        return amount(change.dense)
    return f"{amount(change.dense)} → {amount(change.slim)}"


def widths(layers: Iterable[LayerChange]) -> Change | None:
    """Return the output channels of all these layers together; None where no layer tells."""
    told = [layer.width for layer in layers if layer.width is not None]
    return Change.total(told) if told else None


def headline(report: PruningReport) -> tuple[str, ...]:
    """Return what matters in a few plain sentences."""
    return (_cost_sentence(report), *_latency_sentences(report), *_proof_sentences(report))


def _cost_sentence(report: PruningReport) -> str:
    macs, params = report.macs, report.params
    return (
        f"The slim {report.model} needs {percent(macs.kept)} of the multiply-adds "
        f"({amount(macs.slim)} of {amount(macs.dense)}) and {percent(params.kept)} of the parameters "
        f"({amount(params.slim)} of {amount(params.dense)})."
    )


def _latency_sentences(report: PruningReport) -> list[str]:
    if not report.latency:
        return []
    first = report.latency[0]
    where = f"in {first.runtime} at batch {first.batch}{' (others below)' if len(report.latency) > 1 else ''}"
    if first.speedup < 1:
        return [f"It is slower than the dense network {where}: a pass takes {1 / first.speedup:.2f} times as long."]
    return [f"It runs {first.speedup:.2f} times as fast as the dense network {where}."]


def _proof_sentences(report: PruningReport) -> list[str]:
    failed = [name for name, proof in report.proofs.items() if not proof.holds]
    if failed:
        return [f"Warning: the outputs differ by more than rounding explains: {', '.join(failed)}."]
    if not report.proofs:
        return ["Whether it computes what the searched network computed was not given."]
    worst = max(proof.relative_error for proof in report.proofs.values())
    return [f"Its outputs are proved equal up to rounding (relative error {worst:.1e})."]


def verdict(proof: Proof) -> str:
    """Say whether a proof holds.

    Example:
        >>> from hyperprune.verify import Proof
        >>> verdict(Proof(3e-7, 1e-4, 1))
        'holds: 3.0e-07, at most 1e-04 allowed'
    """
    word = "holds" if proof.holds else "FAILS"
    return f"{word}: {proof.relative_error:.1e}, at most {proof.tolerance:.0e} allowed"


def second_opinion(report: PruningReport) -> str:
    """Say what fvcore counted."""
    if report.counted is None:
        return NO_SECOND_OPINION
    if (report.counted.dense, report.counted.slim) == (report.macs.dense, report.macs.slim):
        return "fvcore, an independent counter, finds the same MACs to the last one, dense and slim."
    return f"fvcore, an independent counter, finds {amounts(report.counted)} MACs."


def layer_name(path: str) -> str:
    """Name a layer for people.

    Example:
        >>> layer_name("layer1.0.conv1"), layer_name("")
        ('layer1.0.conv1', '(the model itself)')
    """
    return path or "(the model itself)"


def stage_name(path: str) -> str:
    """Name a stage for people; the empty path gathers what lies in no other."""
    return path or "(the rest)"
