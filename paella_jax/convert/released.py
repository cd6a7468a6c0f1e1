"""What a published family of weights is: the record that its file tells once.

The engine (recognise, plan, export) reads records only, so that another released family is one more
file with a record, named in recognise.RECORDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.files import weights_file
from paella_jax.files.foreign import checked, network_of
from paella_jax.files.tensors import ConversionError, Names, Weights
from paella_jax.typing import Tree

SHAPES, JSON, DEFAULT = "the weights", "its config.json", "default"  # where a value is from
Found = dict[str, tuple[Any, str]]  # config field -> its value and where that is from
DRAW = 'python -m paella_jax.sample --checkpoint {out} --prompt "a red circle" --out grid.png'
REQUIRED = object()


class Field(NamedTuple):
    """An argument of a foreign class that holds a field of ours, in another form."""

    ours: str
    # The argument's value and the whole foreign config -> our value.
    read: Callable[[Any, Mapping[str, Any]], Any] = lambda value, config: value
    # Our value and module -> the argument's value.
    write: Callable[[Any, Any], Any] = lambda value, module: value
    default: Any = REQUIRED  # the argument's value where a config leaves it out


class Fixed(NamedTuple):
    """An argument that our network has in one value only: checked and written."""

    value: Any


class Written(NamedTuple):
    """An argument that is not read: `told` by the caller of `write` by that name, or `value`."""

    value: Any = None
    told: str = ""


@dataclass(frozen=True)
class ForeignConfig:
    """A foreign class's config.json <-> our module, told once for both ways.

    Our tuples are its lists.
    """

    class_name: str
    make: Callable[..., Any]  # our module's class
    # The class's arguments, in the order they are written in; a name stands for our field of the
    # same value.
    arguments: Mapping[str, str | Field | Fixed | Written]
    optional: bool = False  # what a config leaves out has our module's default
    lacks: Mapping[str, Any] = field(default_factory=dict)  # ours, and the value it stands for
    check: Callable[[Any], None] = lambda module: None  # refuses what the class cannot be

    @property
    def fields(self) -> dict[str, Field]:
        """Argument -> the field of ours that it holds."""
        named = {n: Field(a) if isinstance(a, str) else a for n, a in self.arguments.items()}
        return {name: known for name, known in named.items() if isinstance(known, Field)}

    def read(self, config: Mapping[str, Any]) -> Any:
        """Our module.

        Raises:
          ValueError: an option that our network does not have.
          ConversionError: an argument is missing.
        """
        values = {}
        for name, known in self.arguments.items():
            if isinstance(known, Fixed) and config.get(name, known.value) != known.value:
                raise ValueError(f"{name} {config[name]!r} is not supported, only {known.value!r}")
        for name, known in self.fields.items():
            if name in config or known.default is not REQUIRED:
                value = known.read(config.get(name, known.default), config)
                values[known.ours] = tuple(value) if isinstance(value, list) else value
            elif not self.optional:
                raise ConversionError(f"has no field {name!r}; download it again")
        return checked(self.make(**values))

    def read_file(self, file: Path) -> Any:
        """Our module for a config.json.

        Raises:
          ConversionError: it is of another class, or lacks arguments.
          ValueError: it has an option that ours does not have.
        """
        config = weights_file.read_json(file)
        kind = config.get("_class_name")
        if kind != self.class_name:
            raise ConversionError(f"{file} is of a {kind!r}, not of a {self.class_name}")
        with weights_file.errors_name(file), network_of("it"):
            return self.read(config)

    def write(self, module: Any, **told: Any) -> dict[str, Any]:
        """What config.json holds.

        Raises:
          ConversionError, ValueError: a network that the class cannot be.
        """
        for name, needed in self.lacks.items():
            value = getattr(module, name)
            if value != needed:
                raise ConversionError(
                    f"model.{name} is {value!r}, diffusers' {self.class_name} has {needed!r} only; "
                    "use --export original"
                )
        self.check(module)
        written: dict[str, Any] = {"_class_name": self.class_name}
        for name, argument in self.arguments.items():
            if isinstance(argument, Fixed):
                value = argument.value
            elif isinstance(argument, Written):
                value = told.get(argument.told, argument.value)
            else:
                known = self.fields[name]
                value = known.write(getattr(module, known.ours), module)
            written[name] = list(value) if isinstance(value, tuple) else value
        return written


class Beside(NamedTuple):
    """A second network in a family's runs, published in an entry or a file of its own."""

    name: str  # of its option, of its export form and in the run's tree
    entry: str  # of the released torch file
    names: Names
    make: Callable[[ConfigDict], Any]
    found: Callable[[Weights, set[str]], Found]  # tensors, and fields that the command line tells
    check: Callable[[Weights, ConfigDict], None]  # refuses what does not fit the family's network
    of_run: Callable[[str | Path], Tree]  # run folder -> its variables
    present: Found  # config fields of weights that come with it ...
    without: Found  # ... and of those that do not
    missing: str  # what is said of those


@dataclass(frozen=True)
class Released:
    """One published family of weights; what a family does not need has a default."""

    family: str  # its name as an option and in messages; two architectures may share one
    title: str  # of the card
    usage: str  # the card's example
    # Names of tensors, any one of which is enough, so that a damaged file is recognised.
    marks: tuple[str, ...]
    runs: Mapping[str, str]  # config field -> value: which runs are of this family
    preset: str  # the released network's config, whose fields stand where the weights do not tell
    make: Callable[..., Any]  # config and tensors, where there is a file -> module
    names: Names
    own: str  # key of its parameters in a run's tree
    infer: Callable[[Weights], dict[str, Any]]  # tensors -> fields of the network, by their shapes
    block: str = "model"  # of the config, for those fields; `codebook_size` is always in `model`
    # Fields with numbers of heads -> the field that they divide; the released width of a head.
    heads: tuple[Mapping[str, str], int] = ({}, 0)
    foreign: ForeignConfig | None = None  # diffusers' config.json
    # Fields that it tells and the weights do not; None where it tells all, so that a layer that is
    # missing from the file is noticed.
    told: tuple[str, ...] | None = ()
    forms: tuple[str, ...] = ("original",)  # that its runs are exported in
    groups: tuple[str, ...] = ()  # other names of --family that stand for it too
    averaged: tuple[str, str] | None = None  # of two entries of a torch file the one that is taken
    # Tensors and inferred fields -> further config fields.
    extra: Callable[[Weights, Mapping[str, Any]], Found] = lambda weights, fields: {}
    # Config, tensors and the tokenizer's config -> fields that follow from those.
    settle: Callable[[ConfigDict, Weights, ConfigDict | None], Found] = lambda *known: {}
    tree: Callable[[Tree], Tree] | None = None  # loaded variables -> a run's tree
    of_run: Callable[[Tree, Tree], Tree] | None = None  # a run's parameters and state -> variables
    training_only: tuple[str, ...] = ()  # networks of a run that no export tells of
    # Option of a frozen network to take along -> its config field, and its value in messages (empty
    # for a network that a run can draw without).
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    together: bool = False  # the others need the tokenizer
    # The tokenizer's field that must equal this config's, and its plural in messages.
    tokenizer: tuple[str, str] = ("", "")
    # Config, tensors and the tokenizer's config: refuses networks that do not fit.
    check: Callable[[ConfigDict, Weights, ConfigDict | None], None] = lambda *known: None
    carry: Callable[[ConfigDict, Path], None] = lambda *known: None  # networks -> a new run folder
    refuse: Callable[[Weights], None] = lambda weights: None  # relatives that are not supported
    check_run: Callable[[ConfigDict], None] = lambda config: None  # refuses what none published is
    text_input: str = ""  # weight of the layer that takes the text, where `foreign` has its width
    beside: Beside | None = None  # a second network of its runs
    # A published folder of several networks, as `AmusedFolder`; None for other paths.
    open_folder: Callable[[str | Path], Any] = lambda path: None
    # Run folder, config, module and `foreign` -> what writes such a folder, see `Export.write`.
    open_run: Callable[[str | Path, ConfigDict, Any, ForeignConfig], Any] | None = None

    def field_of(self, name: str) -> str:
        """The config's name of a network's field."""
        return f"model.{name}" if name == "codebook_size" else f"{self.block}.{name}"

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether a run is of this family; fields that older configs lack count as their first."""
        return all(value_of(config, n) in (value, None) for n, value in self.runs.items())


def value_of(config: Mapping[str, Any], name: str) -> Any:
    """A config's field by its dotted name; None where there is no such."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    return value


def article(family: str) -> str:
    """The family's name in a sentence."""
    return f"{'an' if family[0] in 'aeiou' else 'a'} {family}"
