"""The cells of the paper's tables: error rates of rows on sets, with intervals, and their differences.

Their numbers come from the records of the trainings (``records.py``); ``tables.py`` writes them down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from espnet_speechllm_xl.corpus.kaldi import joined
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import significance
from espnet_speechllm_xl.evaluation.significance import Interval
from espnet_speechllm_xl.paper_tables.plan import Plan, TableRow
from espnet_speechllm_xl.paper_tables.records import Record, RecordedSet, Records, Timing, timing

FEWEST_SEEDS = 3
Rates = dict[int, float]  # error rate in percent by seed


@dataclass
class Cell:
    """One row on one set.

    Attributes:
        rates: of each seed.
        blocks: errors, means over the seeds.
        interval: of the mean error rate.
        infos: contents of ``decode.json``, one for each seed.
        missing: utterances without hypothesis, of all seeds together.
        without_case: whether texts of any seed were compared without regard to case.
    """

    rates: Rates
    blocks: significance.Blocks
    interval: Interval
    infos: list[dict[str, Any]]
    missing: int
    without_case: bool


class Difference(NamedTuple):
    """An error rate minus another, with its interval, and both by seed."""

    interval: Interval
    rates: Rates
    reference: Rates


class Results:
    """The cells of a plan's tables, each made once.

    Args:
        plan: of the corpus.
        records: of its trainings.

    Attributes:
        problems: messages about sets that could not be compared.
    """

    def __init__(self, plan: Plan, records: Records) -> None:
        self.plan, self.records = plan, records
        self.problems: list[str] = []
        self._cells: dict[tuple[str, str, str, str], Cell | None] = {}
        self._references: dict[str, tuple[Path, str]] = {}  # by set: a record, the digest of its references

    def cell(self, row: TableRow, column: str, unit: str | None = None) -> Cell | None:
        """Return the cell of a row and a column of its table, None where no seed is decoded or readable.

        Args:
            row: of the table.
            column: of the table.
            unit: of the errors; None: the corpus's first.
        """
        unit = unit or self.plan.corpus.units[0]
        key = row.system, row.search, self.plan.corpus.set_name(column), unit
        if key not in self._cells:
            try:
                self._cells[key] = self._averaged(*key, by_speaker=joined(column) is None)
            except UserError as error:
                self._cells[key] = None
                self.problems.append(f"{row.system}, {key[2]}: {error}")
        return self._cells[key]

    def _compared(self, row: TableRow, reference: TableRow, column: str, unit: str) -> tuple[Cell | None, Cell | None]:
        """Return the cells of two rows, None where one is missing; two rows of one system have only the seeds of both.

        Args:
            row: of the table.
            reference: another row.
            column: of the table.
            unit: of the errors.
        """
        ours, theirs = self.cell(row, column, unit), self.cell(reference, column, unit)
        if ours is None or theirs is None or row.system != reference.system or ours.rates.keys() == theirs.rates.keys():
            return ours, theirs
        seeds, dataset = ours.rates.keys() & theirs.rates.keys(), self.plan.corpus.set_name(column)
        alone = joined(column) is None
        return (
            self._averaged(row.system, row.search, dataset, unit, alone, seeds),
            self._averaged(reference.system, reference.search, dataset, unit, alone, seeds),
        )

    def _averaged(
        self,
        system: str,
        search: str,
        dataset: str,
        unit: str,
        by_speaker: bool,
        seeds: Collection[int] | None = None,
    ) -> Cell | None:
        """Average the trainings of a system on a set, None where no seed is decoded.

        Args:
            system: name of the system.
            search: that decoded the set.
            dataset: name of the set.
            unit: of the errors.
            by_speaker: blocks may be speakers.
            seeds: of the trainings; None: all.

        Raises:
            UserError: the trainings were scored on different references.
        """
        found: dict[int, RecordedSet] = {}
        for seed in self.records_of(system):
            if seeds is None or seed in seeds:
                decoded = self._decoded(system, seed, search, dataset, unit)
                if decoded is not None:
                    found[seed] = decoded
        if not found:
            return None
        blocks = significance.blocks([decoded.counts[unit] for decoded in found.values()], by_speaker)
        rates = {seed: decoded.rate(unit) for seed, decoded in found.items()}
        missing = sum(decoded.missing for decoded in found.values())
        infos = [decoded.info for decoded in found.values()]
        without_case = any(decoded.without_case for decoded in found.values())
        return Cell(rates, blocks, significance.error_rate(blocks), infos, missing, without_case)

    def _decoded(self, system: str, seed: int, search: str, dataset: str, unit: str) -> RecordedSet | None:
        """Return the decoded set in the record of a training, None without one in that unit.

        Args:
            system: name of the system.
            seed: of the training.
            search: that decoded the set.
            dataset: name of the set.
            unit: of the errors.

        Raises:
            UserError: the set was scored on other references before.
        """
        decoded = self.records.get(system, seed).decoded.get(f"{search}/{dataset}")
        if decoded is None or unit not in decoded.counts:
            return None
        first, digest = self._references.setdefault(dataset, (self.records.path(system, seed), decoded.references))
        if decoded.references != digest:
            raise UserError(
                f"{self.records.path(system, seed).name} was scored on other references than {first.name}: decode both "
                "on the same data, or remove the older one"
            )
        return decoded

    def difference(self, row: TableRow, reference: TableRow, column: str, unit: str) -> Difference | None:
        """Return the difference of two rows' rates, None where one is missing.

        Args:
            row: of the table.
            reference: another row.
            column: of the table.
            unit: of the errors.
        """
        try:
            ours, theirs = self._compared(row, reference, column, unit)
            if ours is None or theirs is None:
                return None
            return Difference(significance.difference(ours.blocks, theirs.blocks), ours.rates, theirs.rates)
        except UserError as error:
            self.problems.append(f"{row.name} against {reference.name}, {column}: {error}")
            return None

    def growth(self, row: TableRow, column: str, unit: str) -> Difference | None:
        """Return the paired difference of rates, joined recordings minus their utterances alone; None without both.

        Args:
            row: of the table.
            column: of joined recordings.
            unit: of the errors.
        """
        whole = self.plan.corpus.set_name(column)
        parsed = joined(whole)
        alone = parsed.base if parsed else whole
        found: dict[int, tuple[RecordedSet, RecordedSet]] = {}
        try:
            for seed in self.records_of(row.system):
                long = self._decoded(row.system, seed, row.search, whole, unit)
                short = self._decoded(row.system, seed, row.search, alone, unit)
                if long and short:
                    found[seed] = long, short
            parts = self.records.parts(whole)
            if not parts or not found:
                return None
            between = int(unit == "characters")
            long_counts = [long.counts[unit] for long, _ in found.values()]
            short_counts = [significance.regrouped(short.counts[unit], parts, between) for _, short in found.values()]
            together, apart = (significance.blocks(side, by_speaker=False) for side in (long_counts, short_counts))
            rates = ({seed: pair[side].rate(unit) for seed, pair in found.items()} for side in (0, 1))
            return Difference(significance.difference(together, apart), *rates)
        except UserError as error:
            self.problems.append(f"{row.system}, {whole} against {alone}: {error}")
            return None

    def records_of(self, system: str) -> dict[int, Record]:
        """Return the records of a system by seed."""
        return {seed: self.records.get(system, seed) for seed in self.records.seeds(system)}

    def model(self, row: TableRow) -> tuple[Timing | None, int | None]:
        """Return latency and number of parameters of a row's system, by the first seed that has them, else Nones."""
        for seed, record in self.records_of(row.system).items():
            if record.config:
                try:
                    return timing(record.config), record.parameters
                except UserError as error:
                    self.problems.append(f"{self.records.path(row.system, seed).name}: {error}")
                    return None, record.parameters
        return None, None


def is_finding(difference: Interval, rates: Mapping[int, float], reference: Mapping[int, float]) -> bool:
    """Tell whether a difference of two systems is a finding.

    Args:
        difference: of their mean error rates.
        rates: error rate of one system by seed.
        reference: error rate of the other by seed.
    """
    if not difference.excludes_zero or min(len(rates), len(reference)) < FEWEST_SEEDS:
        return False
    low, high = sorted((rates.values(), reference.values()), key=max)
    return max(low) < min(high)
