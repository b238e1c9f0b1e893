"""The cells of the paper's tables: error rates of rows on sets, with intervals, and how they differ.

Read from the records of the trainings (``records.py``); how they are written down is ``tables.py``.
"""

from dataclasses import dataclass

from espnet_speechllm_xl.corpus.kaldi import joined
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import significance
from espnet_speechllm_xl.evaluation.significance import Interval
from espnet_speechllm_xl.paper_tables.records import timing

FEWEST_SEEDS = 3


@dataclass
class Cell:
    """One row on one set: ``rates`` by seed (percent), ``blocks`` and ``interval`` of their mean, ``infos`` of
    ``decode.json``, ``missing`` utterances without hypothesis (of all seeds together)."""

    rates: dict
    blocks: significance.Blocks
    interval: Interval
    infos: list
    missing: int


class Results:
    """The cells of a plan's tables, each made once.

    Args:
        plan: :class:`~espnet_speechllm_xl.paper_tables.plan.Plan`.
        records: :class:`~espnet_speechllm_xl.paper_tables.records.Records`.

    ``problems`` are messages about sets that could not be compared.
    """

    def __init__(self, plan, records):
        self.plan, self.records = plan, records
        self.problems = []
        self._cells, self._references = {}, {}

    def cell(self, row, column, unit=None):
        """The :class:`Cell` of a row and a column of its table, None where no seed is decoded or readable.

        ``unit``: that errors are counted in; None: the corpus's first.
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

    def _compared(self, row, reference, column, unit):
        """The :class:`Cell` of each of two rows, None where one is missing; of one system only the seeds of both."""
        ours, theirs = cells = [self.cell(one, column, unit) for one in (row, reference)]
        if None in cells or row.system != reference.system or ours.rates.keys() == theirs.rates.keys():
            return cells
        seeds, dataset = ours.rates.keys() & theirs.rates.keys(), self.plan.corpus.set_name(column)
        alone = joined(column) is None
        return [self._averaged(one.system, one.search, dataset, unit, alone, seeds) for one in (row, reference)]

    def _averaged(self, system, search, dataset, unit, by_speaker, seeds=None):
        trainings = {seed: one for seed, one in self.trainings(system).items() if seeds is None or seed in seeds}
        found = {seed: self._decoded(system, seed, search, dataset, unit) for seed in trainings}
        found = {seed: decoded for seed, decoded in found.items() if decoded is not None}
        if not found:
            return None
        blocks = significance.blocks([decoded.counts[unit] for decoded in found.values()], by_speaker)
        rates = {seed: decoded.rate(unit) for seed, decoded in found.items()}
        missing = sum(decoded.missing for decoded in found.values())
        infos = [decoded.info for decoded in found.values()]
        return Cell(rates, blocks, significance.error_rate(blocks), infos, missing)

    def _decoded(self, system, seed, search, dataset, unit):
        """The decoded set in the record of a training, None without (in that unit); all of a set have one reference."""
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

    def difference(self, row, reference, column, unit):
        """``(Interval, rates, rates)`` of a row minus another on a column, None where one is missing."""
        try:
            ours, theirs = self._compared(row, reference, column, unit)
            if ours is None or theirs is None:
                return None
            return significance.difference(ours.blocks, theirs.blocks), ours.rates, theirs.rates
        except UserError as error:
            self.problems.append(f"{row.name} against {reference.name}, {column}: {error}")
            return None

    def growth(self, row, column, unit):
        """What joining does: ``(Interval, rates joined, rates alone)`` of a row on a joined column, None without both.

        The interval is of the rate of the joined recordings minus that of the utterances they hold, paired.
        """
        whole = self.plan.corpus.set_name(column)
        alone = joined(whole).base
        found = {}
        try:
            for seed in self.trainings(row.system):
                pair = [self._decoded(row.system, seed, row.search, name, unit) for name in (whole, alone)]
                if all(pair):
                    found[seed] = pair
            parts = self.records.parts(whole)
            if not parts or not found:
                return None
            sides = [[pair[side].counts[unit] for pair in found.values()] for side in (0, 1)]
            between = int(unit == "characters")
            sides[1] = [significance.regrouped(counts, parts, between) for counts in sides[1]]
            long, short = (significance.blocks(side, by_speaker=False) for side in sides)
            rates = [{seed: pair[side].rate(unit) for seed, pair in found.items()} for side in (0, 1)]
            return significance.difference(long, short), *rates
        except UserError as error:
            self.problems.append(f"{row.system}, {whole} against {alone}: {error}")
            return None

    def trainings(self, system):
        """``{seed: Record}`` of a system."""
        return {seed: self.records.get(system, seed) for seed in self.records.seeds(system)}

    def model(self, row):
        """(:class:`Timing`, number of parameters) of a row's system, of the first seed that has them, else Nones."""
        for seed, record in self.trainings(row.system).items():
            if record.config:
                try:
                    return timing(record.config), record.parameters
                except UserError as error:
                    self.problems.append(f"{self.records.path(row.system, seed).name}: {error}")
                    return None, record.parameters
        return None, None


def is_finding(difference, rates, reference):
    """Whether a difference may be called one; ``rates`` and ``reference``: WER by seed of the two systems."""
    if not difference.excludes_zero or min(len(rates), len(reference)) < FEWEST_SEEDS:
        return False
    low, high = sorted((rates.values(), reference.values()), key=max)
    return max(low) < min(high)
