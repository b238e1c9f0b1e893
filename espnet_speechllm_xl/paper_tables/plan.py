"""The rows of the paper's tables on a corpus: the paper's figures, and the trainings that ours come from.

All of it is declared in ``conf/paper_tables.yaml``; this module reads it.  ``trainings.py`` looks into ``exp/``.

    table   rows and sets (columns) as in the paper
    row     one system, decoded by one search
    system  one training of a recipe; several rows and tables may share it, several seeds may repeat it

    exp/<tag>[_s<seed>]/decode_<search>/<set>/        seed 1 has the bare tag, as the recipe's own models
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from espnet_speechllm_xl.corpus.kaldi import joined
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.metrics import UNITS
from espnet_speechllm_xl.settings import from_dict, read_yaml

T = TypeVar("T")

FIXED_CHUNK = "fixed_chunk"  # SpeechLLM-XL as in the paper, which has a model for each chunk size

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "conf" / "paper_tables.yaml"

# Options that this module gives to the recipes' run.sh.
OWN_OPTIONS = ("stage", "stop-stage", "tag", "searches", "train-args", "aligner-args", "expdir", "system", "size",
               "alignment", "init", "train-config", "decode-tag", "decode-args", "align-sets")  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A recipe, and the options of all trainings on its corpus."""

    tables: list  # numbers of its tables
    size: str  # stands for {size} in tags and options
    valid: str  # names of the sets
    test: str
    directory: str  # of the recipe, from the root of the repository
    expdir: str = "exp"
    options: list = field(default_factory=list)  # of run.sh
    aligner_args: str = ""
    train_args: str = ""  # of all its trainings
    system_args: dict = field(default_factory=dict)  # {system: more of them, of its own}
    units: list = field(default_factory=lambda: ["words"])  # of the errors: words, characters
    without: list = field(default_factory=list)  # systems whose rows are left out
    without_searches: list = field(default_factory=list)  # searches whose rows are left out
    report: str = "TABLES.md"  # beside the records
    is_the_papers: bool = False  # the paper's figures were measured on it

    def set_name(self, column: str) -> str:
        """Return the set of a column on this corpus: ``test_2x`` is ``dev_2x`` where the test set is ``dev``."""
        kind, separator, rest = column.partition("_")
        return {"valid": self.valid, "test": self.test}[kind] + separator + rest


@dataclass(frozen=True)
class System:
    """One training: a system of the recipe's run.sh, with more options."""

    tag: str  # directory in exp/
    only: list = field(default_factory=list)  # corpora whose tables have its rows; none: all
    system: str = FIXED_CHUNK  # --system of run.sh
    stage: str = "train"  # of run.sh, to begin with
    after: str | None = None  # system that is to be trained before
    options: list = field(default_factory=list)
    train_args: str = ""

    @property
    def is_ours(self) -> bool:
        """Tell whether it is SpeechLLM-XL, which plots mark."""
        return self.system in (FIXED_CHUNK, "speechllm_xl")


@dataclass(frozen=True)
class TableRow:
    """A row of a table; the paper's word error rates are texts, clean/other, None where it has none."""

    name: str
    system: str
    search: str
    paper: list | None = None  # one for each column
    paper_system: dict = field(default_factory=dict)  # parameters (millions), look_ahead, chunk (seconds)
    paper_alignment: dict | None = None  # delay, delta (ms)
    aligned: str | None = None  # directory in exp/ whose alignment the row was trained on, if it is to be measured


@dataclass(frozen=True)
class Table:
    """A table: its columns are sets (``valid``, ``test``, ``test_2x``, ...)."""

    title: str
    sets: list
    rows: list  # of TableRow; in the YAML of dict
    reference: str  # name of the row with which the others are compared
    plot: str  # rows: all sets; latency: the test set, and the latency of the rows; alignment: histogram
    axis: str = ""  # head of the names of the rows, if these are not systems

    def row(self, name: str) -> TableRow:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)


PLOTS = ("rows", "latency", "alignment")


class Plan:
    """The tables of one corpus.

    Args:
        name: of the corpus, in the YAML.
        path: the YAML.
        directory: of the recipe; None: as the YAML has it.
        exp: directory of the models in it; None: as the YAML has it.

    Attributes:
        corpus: :class:`Corpus`.
        tables: ``{number: Table}`` of the corpus.
        systems: ``{name: System}`` of those tables, with the corpus's size filled in.

    Raises:
        UserError: the YAML or the corpus is missing, or an entry of the YAML names one that is missing.
    """

    def __init__(
        self,
        name: str,
        path: str | Path = PLAN,
        directory: str | Path | None = None,
        exp: str | Path | None = None,
    ) -> None:
        content = _read(path)
        self.name = name
        self.corpus = _part(Corpus, path, content, "corpora", name)
        if not self.corpus.units or set(self.corpus.units) - set(UNITS):
            raise UserError(f"{path}: corpora {name}: units {self.corpus.units}: there are {' and '.join(UNITS)}")
        systems = _systems(path, content)
        for each in [*self.corpus.system_args, *self.corpus.without]:
            _known(path, "systems", systems, each)
        self.tables = self._own_tables(path, content, systems)
        used: dict[str, None] = dict.fromkeys(row.system for table in self.tables.values() for row in table.rows)
        used.update(dict.fromkeys(filter(None, [_known(path, "systems", systems, each).after for each in used])))
        self.systems = {each: self._sized(_known(path, "systems", systems, each)) for each in used}
        self.directory = Path(directory) if directory else ROOT / self.corpus.directory
        self.expdir = str(exp or self.corpus.expdir)
        self.exp = self.directory / self.expdir
        self.dump = self.directory / "dump"

    def _own_tables(
        self, path: str | Path, content: Mapping[str, Any], systems: Mapping[str, System]
    ) -> dict[str, Table]:
        """Return the corpus's tables, with the rows that it has.

        Args:
            path: of the YAML.
            content: of the YAML.
            systems: all of the YAML.
        """
        where, corpus = f"{path}: corpora {self.name}", self.corpus
        tables = {number: _table(path, content, number) for number in corpus.tables}
        searches = {row.search for table in tables.values() for row in table.rows}
        for each in corpus.without_searches:
            if each not in searches:
                raise UserError(f"{where}: no row has the search '{each}' of without_searches")
        elsewhere = {each for each, system in systems.items() if system.only and self.name not in system.only}
        for number, table in tables.items():
            rows = [row for row in table.rows if row.system not in elsewhere.union(corpus.without)]
            rows = [row for row in rows if row.search not in corpus.without_searches]
            if table.reference not in [row.name for row in rows]:
                raise UserError(
                    f"{where}: table {number} is left without its reference, '{table.reference}': keep that row, "
                    "or leave out the table"
                )
            tables[number] = replace(table, rows=rows)
        return tables

    def _sized(self, system: System) -> System:
        def sized(text: str) -> str:
            return text.replace("{size}", self.corpus.size)

        return replace(system, tag=sized(system.tag), options=[*map(sized, system.options)])

    def rows_of(self, system: str) -> list[tuple[Table, TableRow]]:
        """Return all (table, row) pairs that need a system."""
        return [(table, row) for table in self.tables.values() for row in table.rows if row.system == system]

    def searches(self, system: str) -> list[str]:
        """Return the searches that the rows of a system need, in their order."""
        return list(dict.fromkeys(row.search for _, row in self.rows_of(system)))

    def decodings(self, system: str, search: str | None = None) -> list[tuple[str, str]]:
        """Return the (search, set) pairs that the rows of a system need, or only the pairs of one search."""
        pairs = [
            (row.search, self.corpus.set_name(column)) for table, row in self.rows_of(system) for column in table.sets
        ]
        return [pair for pair in dict.fromkeys(pairs) if search in (None, pair[0])]

    def tag(self, system: str, seed: int = 1) -> str:
        """Return the name of a training's directory."""
        return self.systems[system].tag + (f"_s{seed}" if seed != 1 else "")

    def train_args(self, system: str) -> str:
        """Return ESPnet's options of a training."""
        own = self.systems[system].train_args, self.corpus.system_args.get(system)
        return " ".join(filter(None, [self.corpus.train_args, *own]))

    def preparation(self, extra: Iterable[str] = ()) -> list[str]:
        """Return the command for data, tokens, aligner and alignments, which all trainings share.

        ``extra``: more options.
        """
        options = ["--aligner-args", self.corpus.aligner_args] if self.corpus.aligner_args else []
        place = ["--expdir", self.expdir]
        if any(row.aligned for table in self.tables.values() for row in table.rows):
            place += ["--align-sets", self.corpus.test]  # where the alignment is measured
        command = ["./run.sh", "--system", FIXED_CHUNK, "--stop-stage", "align"]
        return [*command, *place, *options, *self.corpus.options, *extra]

    def command(self, system: str, seed: int = 1, extra: Iterable[str] = ()) -> list[str]:
        """Return the command that trains and decodes; run again, it goes on where it was.

        Args:
            system: name of the system.
            seed: of the training.
            extra: more options.
        """
        one = self.systems[system]
        longform = any(joined(dataset) for _, dataset in self.decodings(system))
        train_args = f"{self.train_args(system)} --seed {seed}".strip()
        return [
            *("./run.sh", "--system", one.system),
            *("--stage", one.stage, "--stop-stage", "longform" if longform else "decode"),
            *("--tag", self.tag(system, seed), "--expdir", self.expdir, "--searches", " ".join(self.searches(system))),
            *("--train-args", train_args, *one.options, *self.corpus.options, *extra),
        ]


def check_extra(options: Sequence[str]) -> None:
    """Raise UserError for an option of run.sh that the rows set themselves, and for no option."""
    if options and not options[0].startswith("--"):
        raise UserError(f"'{options[0]}' is no option: what is for the recipe's run.sh goes after --, as --name value")
    if "--dumpdir" in options:
        raise UserError("--dumpdir: the tables are scored against the recipe's own dump: give --kaldi-data DIR/raw")
    for option in options:
        if option.removeprefix("--").replace("_", "-") in OWN_OPTIONS and option.startswith("--"):
            raise UserError(f"{option} is set by the rows: leave it out, or change it in {PLAN.name}")


def _read(path: str | Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the YAML of the tables") from error
    lacking = [name for name in ("corpora", "systems", "tables") if not isinstance(content.get(name), dict)]
    if lacking:
        raise UserError(f"{path} has no section {' or '.join(lacking)}: see {PLAN}")
    return content


def _part(cls: type[T], path: str | Path, content: Mapping[str, Any], section: str, name: str) -> T:
    """Return the entry ``name`` of a section of the YAML as the dataclass ``cls``."""
    return _made(cls, path, f"{section} {name}", _known(path, section, content[section], name))


def _known(path: str | Path, section: str, entries: Mapping[str, T], name: str) -> T:
    """Return the entry ``name`` of a section of the YAML; raise UserError when there is none."""
    if name not in entries:
        raise UserError(f"{path}: no '{name}' in {section}; there are: {', '.join(map(str, entries))}")
    return entries[name]


def _made(cls: type[T], path: str | Path, what: str, values: Mapping[str, Any] | None) -> T:
    """Make a dataclass of an entry of the YAML; raise UserError, which names it as ``what``, for a missing field."""
    given, dataclass_of = values or {}, cast(Any, cls)
    lacking = [each.name for each in fields(dataclass_of) if _is_required(each) and given.get(each.name) is None]
    if lacking:
        raise UserError(f"{path}: {what} lacks {', '.join(lacking)}: add it")
    return from_dict(cls, values, f"{path}: {what}")


def _is_required(each: Field) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _systems(path: str | Path, content: Mapping[str, Any]) -> dict[str, System]:
    """Return all systems of the YAML by their names."""
    systems = {name: _part(System, path, content, "systems", name) for name in content["systems"]}
    for system in systems.values():
        for corpus in system.only:
            _known(path, "corpora", content["corpora"], corpus)
    return systems


def _table(path: str | Path, content: Mapping[str, Any], number: str) -> Table:
    table = _part(Table, path, content, "tables", number)
    rows = [_made(TableRow, path, f"tables {number}, row {values.get('name')}", values) for values in table.rows]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: table {number} has two rows of the same name: rename one")
    if table.reference not in names:
        raise UserError(f"{path}: table {number} has no row '{table.reference}', its reference")
    if table.plot not in PLOTS:
        raise UserError(f"{path}: table {number}: plot '{table.plot}' is unknown; there are: {', '.join(PLOTS)}")
    for column in table.sets:
        if str(column).partition("_")[0] not in ("valid", "test"):
            raise UserError(f"{path}: table {number}: set '{column}': give valid or test, or those joined (test_10x)")
    for row in rows:
        if row.paper is not None and len(row.paper) != len(table.sets):
            raise UserError(f"{path}: table {number}, row {row.name}: paper wants one entry for each of {table.sets}")
    return Table(table.title, table.sets, rows, table.reference, table.plot, table.axis)
